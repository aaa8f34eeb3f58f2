"""The runs directory: making, finding and listing runs.

A run is named for a person: task, model, when it began (UTC) and four hex digits, as in
``ioi-bundled-20261120-153012-a1b2``. The folder appears under that name with its run.json already in it.
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
from discovery.store.files import check_name, explain_disk_errors, sync_folder, write_json
from discovery.store.run import Run, write_pairs
from discovery.store.run_record import ModelSource, RunKind, RunRecord, RunStatus

RUNS_DIR_VARIABLE = "CIRCUIT_SCOUT_RUNS_DIR"


@dataclass(frozen=True)
class RunSummary:
    """One line of `circuit-scout runs list`.

    Attributes:
        id: the run's.
        status: as `Run.status`, or damaged.
        verdict: where it is completed and has one.
        task: name of the behaviour.
        model: as it was asked for.
        created: when, in UTC.
        problem: what is damaged, or why it failed.
        kind: discovery of a circuit, or the training of an SAE.
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
    """CIRCUIT_SCOUT_RUNS_DIR, else `runs` in the user's data directory for circuit-scout."""
    chosen = os.environ.get(RUNS_DIR_VARIABLE)
    return (
        Path(chosen).expanduser()
        if chosen
        else platformdirs.user_data_path("circuit-scout", appauthor=False) / "runs"
    )


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
    """Make a run folder, opened for writing: it appears with its configuration and pairs in it, so that it can be resumed from then on.

    Args:
        runs_dir: where; None is the default.
        task: name of the behaviour; of a path, its last part is used.
        model: where the weights come from.
        configuration: everything that was asked for, as JSON.
        provenance: how to do it again.
        pairs: the lines of task.jsonl.
        kind: what the run does.

    Raises:
        StoreError: where the disk refuses.
    """
    root, lines = _resolve_runs_dir(runs_dir), list(pairs)
    name = Path(task).stem if "/" in task or task.endswith(".jsonl") else task
    while True:
        run_id = new_run_id(name, model.name or "model")
        made = provenance or Provenance()
        record = RunRecord(
            run_id=run_id,
            kind=kind,
            task=name,
            model=model,
            configuration=configuration,
            provenance=made,
        )
        with explain_disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            draft = root / f".new-{run_id}"
            try:
                write_json(draft / "run.json", record)
                if lines:
                    write_pairs(draft, lines)
                draft.rename(root / run_id)
            except BaseException as fault:
                shutil.rmtree(draft, ignore_errors=True)
                if (
                    isinstance(fault, OSError) and (root / run_id).exists()
                ):  # two runs of one second drew the same four digits
                    continue
                raise
            sync_folder(root)
        return Run(root / run_id, write=True)


def open_run(runs_dir: Path | str | None, run_id: str, *, write: bool = False) -> Run:
    """Open a run that exists.

    Args:
        runs_dir: where; None is the default.
        run_id: the folder's name.
        write: also take the lock, and cut off what a kill left of a last event.

    Raises:
        StoreError: where there is no such run (naming the nearest), it is damaged, or another process writes to it.
    """
    root = _resolve_runs_dir(runs_dir)
    path = root / check_name(run_id, "the id of a run")
    if not path.is_dir():
        known = run_ids(root)
        near = difflib.get_close_matches(run_id, known, n=3, cutoff=0.4) or known[:3]
        cure = (
            f"Did you mean {', '.join(near)}?"
            if near
            else "There is none yet: `circuit-scout discover` makes one."
        )
        raise StoreError(f"There is no run {run_id!r} in {root}.", cure)
    if not (path / "run.json").exists():
        raise StoreError(
            f"{path} is no run: it has no run.json.", "Delete the folder, or restore the file."
        )
    return Run(path, write=write)


def run_ids(runs_dir: Path | str | None) -> list[str]:
    """The name of every run folder, the newest first."""
    root = _resolve_runs_dir(runs_dir)
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
    """Every run, the newest first; a damaged folder is listed as damaged, with what is wrong."""
    return [_summarise(runs_dir, run_id) for run_id in run_ids(runs_dir)]


def new_run_id(task: str, model: str) -> str:
    """A readable id that no other run has: task, model, UTC time, four hex digits."""
    return f"{_slug(task)}-{_slug(model)}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _summarise(runs_dir: Path | str | None, run_id: str) -> RunSummary:
    try:
        run = open_run(runs_dir, run_id)
        record, status = run.record, run.status
        verdict = (
            run.load_circuit().verdict
            if status == "completed" and record.kind == "discovery"
            else None
        )
    except StoreError as fault:
        return RunSummary(run_id, "damaged", problem=fault.cause)
    return RunSummary(
        run_id,
        status,
        verdict,
        record.task,
        record.model.name,
        record.created,
        record.problem,
        record.kind,
    )


def _resolve_runs_dir(runs_dir: Path | str | None) -> Path:
    try:
        return default_runs_dir() if runs_dir is None else Path(runs_dir).expanduser()
    except RuntimeError:
        asked = os.environ.get(RUNS_DIR_VARIABLE) if runs_dir is None else runs_dir
        raise StoreError(
            f"The runs directory {str(asked)!r} names a user that does not exist.",
            "Write the path out.",
        ) from None


def _slug(text: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", Path(text).name.lower()).strip("-")
    return words[:32].strip("-") or "x"


def _start_time(name: str) -> str:
    found = re.search(r"\d{8}-\d{6}", name)
    return found[0] if found else ""
