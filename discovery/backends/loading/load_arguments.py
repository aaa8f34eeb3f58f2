"""How a model was opened, as a run records it, and opened again so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from discovery.backends.base import Backend
from discovery.backends.loading.load import load_model

LOAD_ARGUMENTS = ("backend", "device", "dtype", "device_map", "remote")


def load_arguments(model: Backend) -> dict[str, Any]:
    """How to open a model again. One that was spread is spread by what is free then; a simulated server's is opened here."""
    info = model.info
    place = Path(info.name).expanduser()
    name = str(place.resolve()) if place.is_dir() and info.name != "bundled" else info.name
    where = {"device": "auto", "device_map": "auto"} if info.device_map else {"device": info.device}
    return {
        "model": name,
        "backend": info.backend,
        **where,
        "dtype": info.dtype,
        "remote": bool(info.remote),
    }


def reload(arguments: Mapping[str, Any]) -> Backend:
    """The model that was opened so."""
    return load_model(
        arguments["model"],
        **{name: arguments[name] for name in LOAD_ARGUMENTS if name in arguments},
    )
