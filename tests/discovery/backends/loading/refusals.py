"""Helpers of the tests that load what cannot be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from discovery.backends.loading.load import load_model
from discovery.errors import ModelError


def refuse(name: Any, **options: Any) -> ModelError:
    """Check that loading fails with a cause and a cure of one line each, and return the error."""
    with pytest.raises(ModelError) as caught:
        load_model(name, **{"device": "cpu"} | options)
    fault = caught.value
    for line in (fault.cause, fault.cure):
        assert line.strip()
        assert "\n" not in line
    return fault


def change_json(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
