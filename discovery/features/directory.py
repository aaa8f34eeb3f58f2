"""Dictionaries on disk: where one is, the one that comes with the bundled model, and what its files say of it.

A dictionary is a directory with SAELens's cfg.json and sae_weights.safetensors; a training's run folder has one in `sae/`, so that
its id names a dictionary too.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from discovery.errors import FeatureError
from discovery.graph.strict_json import loads
from discovery.store import default_runs_dir, open_run
from discovery.store.files import read_bytes, write_bytes

BUNDLED = "bundled"
CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"
SAE_FOLDER, RUN_FILE = "sae", "run.json"


@dataclass(frozen=True)
class SAEInfo:
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
    if not (found / CONFIG_FILE).is_file():
        raise FeatureError(
            "This installation lacks the bundled SAE.",
            "Install the package again, or train one: circuit-scout sae train.",
        )
    return found


def find_directory(source: str | Path, runs_dir: Path | str | None = None) -> Path | None:
    """Where a dictionary is; None where nothing of that name is on disk.

    Args:
        source: "bundled", a directory, or the folder or the id of a training's run.
        runs_dir: in which an id is looked up; None is the default.

    Raises:
        FeatureError: a directory without a dictionary; of a run, says what the run lacks.
    """
    if source == BUNDLED:
        return bundled_directory()
    place = _existing_path(source, runs_dir)
    if place is None:
        return None
    found = (
        place / SAE_FOLDER
        if not (place / CONFIG_FILE).exists() and (place / RUN_FILE).exists()
        else place
    )
    if missing := [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (found / name).is_file()]:
        if (place / RUN_FILE).exists():
            raise _no_dictionary_in(place)
        name = place.name or str(source)
        raise FeatureError(
            f"{name!r} has no {' and no '.join(missing)}.",
            "Give the directory that SAE.save_model wrote.",
        )
    return found


def short_name(name: str) -> str:
    """A dictionary's name in a record, which is read on other machines: of a path the last part, of a training the run's id."""
    path = Path(name)
    if not path.is_absolute():
        return name
    return (
        path.parent.name
        if path.name == SAE_FOLDER and (path.parent / RUN_FILE).exists()
        else path.name
    )


def read_info(source: str | Path, runs_dir: Path | str | None = None) -> SAEInfo:
    """What a dictionary is, from its files alone.

    Args:
        source, runs_dir: as in `find_directory`.

    Raises:
        FeatureError: there is no dictionary.
    """
    directory = find_directory(source, runs_dir)
    if directory is None:
        raise FeatureError(
            f"There is no dictionary {str(source)!r}, neither here nor among the runs in {runs_dir or default_runs_dir()}.",
            "Give 'bundled', a SAELens directory, or the id of a finished training (circuit-scout runs list).",
        )
    config = loads(read_bytes(directory / CONFIG_FILE), str(directory / CONFIG_FILE))
    metadata = config.get("metadata") or {}
    own = metadata.get("circuit_scout") or {}
    return SAEInfo(
        name=str(source),
        architecture=str(config.get("architecture")),
        hook=metadata.get("hook_name"),
        model=metadata.get("model_name"),
        fingerprint=metadata.get("model_fingerprint"),
        d_in=int(config.get("d_in", 0)),
        features=int(config.get("d_sae", 0)),
        bytes=(directory / WEIGHTS_FILE).stat().st_size,
        text=(own.get("text") or {}).get("name"),
        recipe=own.get("recipe"),
        scores=own.get("scores"),
    )


def copy_sae(directory: Path, to: Path) -> None:
    """Write a dictionary elsewhere, its configuration last."""
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        write_bytes(to / name, read_bytes(directory / name))


def _existing_path(source: str | Path, runs_dir: Path | str | None) -> Path | None:
    """A file or folder that is there, or the folder of the run that a plain name is the id of."""
    try:
        given = Path(source).expanduser()
        if given.exists():
            return given
        folder = Path(runs_dir or default_runs_dir()).expanduser() / given
        return folder if given.name == str(source) and (folder / RUN_FILE).exists() else None
    except (
        OSError,
        RuntimeError,
        ValueError,
    ):  # longer than a name can be, or of a user whom nobody knows
        return None


def _no_dictionary_in(folder: Path) -> FeatureError:
    """Why a run's folder has none."""
    run = open_run(folder.resolve().parent, folder.resolve().name)
    if run.record.kind != "sae":
        return FeatureError(
            f"The run {run.id} is no training of an SAE: it has no dictionary.",
            "Give the id of a finished training.",
        )
    if run.status == "completed":
        return FeatureError(
            f"The training {run.id} has lost its dictionary, the folder {SAE_FOLDER}.",
            "Restore it, or train it again.",
        )
    return FeatureError(
        f"The training {run.id} is {run.status}, and has no dictionary yet.",
        f"Let it end, or go on with it: circuit-scout sae train --resume {run.id}, or train_sae(run_id={run.id!r}).",
    )
