"""The engines there are, and which of them knows a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from discovery.backends.layout import layout_of
from discovery.errors import ModelError

Engine = Literal["transformerlens", "nnsight"]
ENGINES: Mapping[Engine, str] = {"transformerlens": "TransformerLens", "nnsight": "nnsight"}


def engines_of(config: Any) -> tuple[tuple[Engine, ...], str]:
    """Which engines know a Hugging Face configuration, and why the other does not. Whether they reproduce it is found out at load."""
    try:
        layout_of(config)
    except ModelError as fault:
        return ("transformerlens",), fault.cause
    return ("transformerlens", "nnsight"), ""
