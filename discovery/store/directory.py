"""The runs directory: creating, finding and listing runs. It also gives the cache directory.

The id of a run is readable: task, model, the time when it began (UTC) and four hex digits, as in
``ioi-bundled-20261120-153012-a1b2``. Its folder appears under that name with run.json already in
it.
"""

from __future__ import annotations

import difflib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import platformdirs

from discovery.errors import StoreError
from discovery.graph import Provenance, Verdict
from discovery.store.files import (
    check_name,
    explain_disk_errors,
    sync_folder,
    write_bytes,
    write_json,
)
from discovery.store.run import Run, format_pairs
from discovery.store.run_record import ModelSource, RunKind, RunRecord, RunStatus

RUNS_DIR_VARIABLE = "CIRCUIT_SCOUT_RUNS_DIR"
CACHE_DIR_VARIABLE = "CIRCUIT_SCOUT_CACHE_DIR"


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One line of `circuit-scout runs list`.

    Attributes:
        id: the id of the run.
        status: the status as in `Run.status`, or "damaged".
        verdict: the verdict of a completed discovery.
        task: the name of the behaviour.
        model: the model as it was asked for.
        created: when the run began, in UTC.
        problem: what is damaged, or why the run failed.
        kind: whether the run discovers a circuit or trains an SAE.
    """

    id: str
    status: RunStatus | Literal["damaged"]
    verdict: Verdict | None = None
    task: str | None = None
    model: str | None = None
    created: str | None = None
    problem: str | None = None
    kind: RunKind = "discovery"


def default_runs_dir() -> Path:
    """Return CIRCUIT_SCOUT_RUNS_DIR, or `runs` in the user's data directory for circuit-scout."""
    if path := os.environ.get(RUNS_DIR_VARIABLE):
        return Path(path).expanduser()
    return platformdirs.user_data_path("circuit-scout", appauthor=False) / "runs"


def default_cache_dir() -> Path:
    """Return CIRCUIT_SCOUT_CACHE_DIR, or the user's cache directory for circuit-scout.

    What lies there can be computed again: converted models, and answers that took long.
    """
    if path := os.environ.get(CACHE_DIR_VARIABLE):
        return Path(path).expanduser()
    return platformdirs.user_cache_path("circuit-scout", appauthor=False)


def create_run(
    runs_dir: Path | str | None,
    task: str,
    model: ModelSource,
    configuration: Mapping[str, Any],
    *,
    provenance: Provenance | None = None,
    pairs: Iterable[Mapping[str, Any]] = (),
    kind: RunKind = "discovery",
) -> Run:
    """Create a run folder, and open it for writing.

    The folder appears with its configuration and pairs in it, so that the run can be resumed from
    then on.

    Args:
        runs_dir: the runs directory; None means the default one.
        task: the name of the behaviour; of a path, the last part is used.
        model: where the weights come from.
        configuration: everything that was asked for, as JSON.
        provenance: how the run can be repeated.
        pairs: the lines of task.jsonl.
        kind: what the run does.

    Raises:
        StoreError: if the folder cannot be written.
    """
    root = resolve_runs_dir(runs_dir)
    lines = list(pairs)
    name = Path(task).stem if "/" in task or task.endswith(".jsonl") else task
    while True:
        run_id = new_run_id(name, model.name or "model")
        record = RunRecord(
            run_id=run_id,
            kind=kind,
            task=name,
            model=model,
            configuration=configuration,
            provenance=provenance or Provenance(),
        )
        with explain_disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            draft = root / f".new-{run_id}"
            try:
                write_json(draft / "run.json", record)
                if lines:
                    write_bytes(draft / "task.jsonl", format_pairs(lines))
                draft.rename(root / run_id)
            except BaseException as fault:
                shutil.rmtree(draft, ignore_errors=True)
                if isinstance(fault, OSError) and (root / run_id).exists():
                    continue  # two runs that began in the same second drew the same four digits
                raise
            sync_folder(root)
        return Run(root / run_id, write=True)


def open_run(runs_dir: Path | str | None, run_id: str, *, write: bool = False) -> Run:
    """Open a run that exists.

    Args:
        runs_dir: the runs directory; None means the default one.
        run_id: the id of the run, which is the name of its folder.
        write: whether to take the lock, and to cut off what a kill left of a last event.

    Raises:
        StoreError: if there is no such run (the message names similar ids), if it is damaged, or if
            another process writes to it.
    """
    root = resolve_runs_dir(runs_dir)
    path = root / check_name(run_id, "the id of a run")
    if not path.is_dir():
        known = run_ids(root)
        similar = difflib.get_close_matches(run_id, known, n=3, cutoff=0.4) or known[:3]
        cure = "There is none yet: `circuit-scout discover` makes one."
        if similar:
            cure = f"Did you mean {', '.join(similar)}?"
        raise StoreError(f"There is no run {run_id!r} in {root}.", cure)
    if not (path / "run.json").exists():
        raise StoreError(
            f"{path} is not a run: it has no run.json.", "Delete the folder, or restore the file."
        )
    return Run(path, write=write)


def run_ids(runs_dir: Path | str | None) -> list[str]:
    """Return the id of every run, the newest first."""
    root = resolve_runs_dir(runs_dir)
    if not root.exists():
        return []
    with explain_disk_errors(root):
        names = [
            entry.name
            for entry in root.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        ]
    return sorted(names, key=lambda name: (_start_time(name), name), reverse=True)


def list_runs(runs_dir: Path | str | None) -> list[RunSummary]:
    """Return every run, the newest first. A damaged folder is listed with what is wrong."""
    return [_summarise(runs_dir, run_id) for run_id in run_ids(runs_dir)]


def new_run_id(task: str, model: str) -> str:
    """Return a readable id: task, model, the time in UTC and four random hex digits."""
    return f"{_slug(task)}-{_slug(model)}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _summarise(runs_dir: Path | str | None, run_id: str) -> RunSummary:
    try:
        run = open_run(runs_dir, run_id)
        record = run.record
        status = run.status
        is_complete_discovery = status == "completed" and record.kind == "discovery"
        verdict = run.load_circuit().verdict if is_complete_discovery else None
    except StoreError as fault:
        return RunSummary(id=run_id, status="damaged", problem=fault.cause)
    return RunSummary(
        id=run_id,
        status=status,
        verdict=verdict,
        task=record.task,
        model=record.model.name,
        created=record.created,
        problem=record.problem,
        kind=record.kind,
    )


def resolve_runs_dir(runs_dir: Path | str | None) -> Path:
    """Return the runs directory that was asked for; None means the default one.

    Raises:
        StoreError: if the path begins with the home directory of a user that does not exist.
    """
    try:
        return default_runs_dir() if runs_dir is None else Path(runs_dir).expanduser()
    except RuntimeError:
        path = os.environ.get(RUNS_DIR_VARIABLE) if runs_dir is None else runs_dir
        raise StoreError(
            f"The runs directory {str(path)!r} names a user that does not exist.",
            "Write the path without ~.",
        ) from None


def _slug(text: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", Path(text).name.lower()).strip("-")
    return words[:32].strip("-") or "x"


def _start_time(name: str) -> str:
    match = re.search(r"\d{8}-\d{6}", name)
    return match[0] if match else ""
