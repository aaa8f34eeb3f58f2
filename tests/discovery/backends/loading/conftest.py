"""Model directories that the tests of loading may spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.random_models.tiny_models import TinyModels


@pytest.fixture
def gpt2(tiny_models: TinyModels, folder: Path) -> Path:
    """A copy of a sound GPT-2."""
    return Path(shutil.copytree(tiny_models.path("gpt2"), folder))
