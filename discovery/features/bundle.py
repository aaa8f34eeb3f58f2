"""Dictionaries on disk: where one is, the one that comes with the bundled model, and what its files say of it.

A dictionary is a directory with SAELens's cfg.json and sae_weights.safetensors; a training's run folder has one in `sae/`.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from discovery.errors import FeatureError
from discovery.graph.strict_json import loads
from discovery.store import default_runs_dir
from discovery.store.files import read_bytes, write_bytes

BUNDLED = "bundled"
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
IN_A_RUN = "sae"


@dataclass(frozen=True)
class Facts:
    """What a dictionary's configuration says.

    Attributes:
        hook: the hook point it reads. model: what it was trained on; fingerprint: sha256 of that model's weights.
        recipe, scores: where it was trained here.
    """

    name: str
    architecture: str
    hook: str | None
    model: str | None
    fingerprint: str | None
    d_in: int
    features: int
    bytes: int
    text: str | None
    recipe: Mapping[str, Any] | None
    scores: Mapping[str, Any] | None


def bundled_directory() -> Path:
    """The dictionary of the bundled model.

    Raises:
        FeatureError: where this installation lacks it.
    """
    found = Path(str(importlib.resources.files("discovery.features") / "bundled"))
    if not (found / CONFIG).is_file():
        raise FeatureError("This installation lacks the bundled SAE.", "Install the package again, or train one: circuit-scout sae train.")
    return found


def inner(directory: Path) -> Path:
    """The dictionary's own directory, where a training's run folder was given."""
    within = directory / IN_A_RUN
    return within if not (directory / CONFIG).exists() and (within / CONFIG).exists() else directory


def facts(source: str | Path) -> Facts:
    """What a dictionary is, from its files alone.

    Args:
        source: "bundled", a directory, or the folder or the id of a training's run.

    Raises:
        FeatureError: there is no dictionary.
    """
    directory = _directory(source)
    config = loads(read_bytes(directory / CONFIG), str(directory / CONFIG))
    metadata = config.get("metadata") or {}
    own = metadata.get("circuit_scout") or {}
    return Facts(
        name=str(source),
        architecture=str(config.get("architecture")),
        hook=metadata.get("hook_name"),
        model=metadata.get("model_name"),
        fingerprint=metadata.get("model_fingerprint"),
        d_in=int(config.get("d_in", 0)),
        features=int(config.get("d_sae", 0)),
        bytes=(directory / WEIGHTS).stat().st_size,
        text=(own.get("text") or {}).get("name"),
        recipe=own.get("recipe"),
        scores=own.get("scores"),
    )


def copy_dictionary(directory: Path, to: Path) -> None:
    """Write a dictionary elsewhere, its configuration last."""
    for name in (WEIGHTS, CONFIG):
        write_bytes(to / name, read_bytes(directory / name))


def _directory(source: str | Path) -> Path:
    if source == BUNDLED:
        return bundled_directory()
    given = Path(source).expanduser()
    for place in (given, default_runs_dir() / given):
        found = inner(place)
        if all((found / name).is_file() for name in (CONFIG, WEIGHTS)):
            return found
    raise FeatureError(
        f"{str(source)!r} is no dictionary: it has no {CONFIG} with {WEIGHTS}.",
        "Give 'bundled', a SAELens directory, or a training that is finished (circuit-scout runs list).",
    )
