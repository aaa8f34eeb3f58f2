"""SAEs on disk: where they are, and what their files say of them.

An SAE is a directory with SAELens's cfg.json and sae_weights.safetensors. The run folder of a
training holds one in `sae/`, so the id of the run names an SAE too.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from discovery.backends.loading.source import BUNDLED
from discovery.errors import FeatureError
from discovery.graph.strict_json import loads
from discovery.store import SAE_FOLDER, RunKind, default_runs_dir, open_run
from discovery.store.files import read_bytes, write_bytes

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
RUN_FILE = "run.json"
TRAINING_RUN_KIND: RunKind = "sae"


@dataclass(frozen=True, kw_only=True)
class SAEInfo:
    """What the configuration of an SAE says.

    Attributes:
        name: as it was given.
        architecture: SAELens's name of the architecture.
        hook: the hook point that the SAE reads.
        model: the model that it was trained on.
        fingerprint: sha256 of that model's weights.
        d_in: numbers at a position that it reads.
        features: how many features it has.
        bytes: size of the weights file.
        text: name of the text that it was trained on.
        recipe: how it was trained; None if it was not trained here.
        scores: its scores on held-out text; None if it was not trained here.
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
    """Return the directory of the bundled model's SAE.

    Raises:
        FeatureError: if this installation lacks it.
    """
    directory = Path(str(importlib.resources.files("discovery.features") / BUNDLED))
    if not (directory / CONFIG_FILE).is_file():
        raise FeatureError(
            "This installation lacks the bundled SAE.",
            "Install the package again, or train one: circuit-scout sae train.",
        )
    return directory


def find_directory(source: str | Path, runs_dir: Path | str | None = None) -> Path | None:
    """Return the directory of an SAE, or None if nothing of that name is on disk.

    Args:
        source: "bundled", a directory, or the folder or the id of a training's run.
        runs_dir: where a run's id is looked up; None is the default runs directory.

    Raises:
        FeatureError: if the directory holds no SAE. For a run it says what state the run is in.
    """
    if source == BUNDLED:
        return bundled_directory()
    path = _existing_path(source, runs_dir)
    if path is None:
        return None
    is_run = (path / RUN_FILE).exists()
    directory = path / SAE_FOLDER if is_run and not (path / CONFIG_FILE).exists() else path
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (directory / name).is_file()]
    if missing and is_run:
        raise _missing_sae_error(path)
    if missing:
        raise FeatureError(
            f"{path.name or str(source)!r} has no {' and no '.join(missing)}.",
            "Give the directory that SAE.save_model wrote.",
        )
    return directory


def short_name(name: str) -> str:
    """Return an SAE's name for a record, which is read on other machines.

    Of a path it is the last part, and of a path into a run folder it is the run's id.
    """
    path = Path(name)
    if not path.is_absolute():
        return name
    is_in_run = path.name == SAE_FOLDER and (path.parent / RUN_FILE).exists()
    return path.parent.name if is_in_run else path.name


def read_info(source: str | Path, runs_dir: Path | str | None = None) -> SAEInfo:
    """Read what an SAE is from its files, without loading it.

    Args:
        source: as in `find_directory`.
        runs_dir: as in `find_directory`.

    Raises:
        FeatureError: if there is no SAE of that name.
    """
    directory = find_directory(source, runs_dir)
    if directory is None:
        raise FeatureError(
            f"There is no SAE {str(source)!r}, neither here nor among the runs in "
            f"{runs_dir or default_runs_dir()}.",
            "Give 'bundled', a SAELens directory, or the id of a finished training "
            "(circuit-scout runs list).",
        )
    config = loads(read_bytes(directory / CONFIG_FILE), str(directory / CONFIG_FILE))
    metadata = config.get("metadata") or {}
    training = metadata.get("circuit_scout") or {}
    return SAEInfo(
        name=str(source),
        architecture=str(config.get("architecture")),
        hook=metadata.get("hook_name"),
        model=metadata.get("model_name"),
        fingerprint=metadata.get("model_fingerprint"),
        d_in=int(config.get("d_in", 0)),
        features=int(config.get("d_sae", 0)),
        bytes=(directory / WEIGHTS_FILE).stat().st_size,
        text=(training.get("text") or {}).get("name"),
        recipe=training.get("recipe"),
        scores=training.get("scores"),
    )


def copy_sae(directory: Path, to: Path) -> None:
    """Copy an SAE, with its configuration last, so that a directory with one is complete."""
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        write_bytes(to / name, read_bytes(directory / name))


def _existing_path(source: str | Path, runs_dir: Path | str | None) -> Path | None:
    """Return an existing file or folder, or the folder of the run with this id."""
    try:
        path = Path(source).expanduser()
        if path.exists():
            return path
        folder = Path(runs_dir or default_runs_dir()).expanduser() / path
        return folder if path.name == str(source) and (folder / RUN_FILE).exists() else None
    except (OSError, RuntimeError, ValueError):
        return None  # the name is too long for a path, or names an unknown user


def _missing_sae_error(folder: Path) -> FeatureError:
    """Return an error that says why a run's folder has no SAE."""
    run = open_run(folder.resolve().parent, folder.resolve().name)
    if run.record.kind != TRAINING_RUN_KIND:
        return FeatureError(
            f"The run {run.id} is not a training of an SAE, so it has no SAE.",
            "Give the id of a finished training.",
        )
    if run.status == "completed":
        return FeatureError(
            f"The training {run.id} has lost its SAE, the folder {SAE_FOLDER}.",
            "Restore it, or train it again.",
        )
    return FeatureError(
        f"The training {run.id} is {run.status}, and has no SAE yet.",
        f"Let it end, or continue it: circuit-scout sae train --resume {run.id}, or "
        f"train_sae(run_id={run.id!r}).",
    )
