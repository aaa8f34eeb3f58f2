"""Runs on disk: folders that a kill cannot damage and that two processes cannot write at once.

`create_run` and `open_run` return a `Run`. `record_heldout_look` counts the circuits that were
evaluated on the same held-out pairs. This package needs no torch.

    >>> import tempfile
    >>> runs_dir = tempfile.TemporaryDirectory()
    >>> with create_run(runs_dir.name, "ioi", ModelSource(name="bundled"), {"seed": 0}) as run:
    ...     _ = run.append_event({"stage": "check", "concluded": "the model does the task"})
    >>> [event["stage"] for event in open_run(runs_dir.name, run.id).events()]
    ['check']
    >>> runs_dir.cleanup()
"""

from __future__ import annotations

from discovery.store.arrays import join_names, split_names
from discovery.store.checksums import FileDamage
from discovery.store.directory import (
    RUNS_DIR_VARIABLE,
    RunSummary,
    create_run,
    default_runs_dir,
    list_runs,
    open_run,
    run_ids,
)
from discovery.store.heldout_looks import record_heldout_look
from discovery.store.journal import Event, OnEvent, utc_timestamp
from discovery.store.outcome import record_outcome
from discovery.store.ranking import RankedNode, read_candidate, read_ranking
from discovery.store.run import Run
from discovery.store.run_record import (
    SAE_FOLDER,
    ModelSource,
    RunKind,
    RunRecord,
    RunStatus,
    collect_provenance,
)

__all__ = [
    "RUNS_DIR_VARIABLE",
    "SAE_FOLDER",
    "Event",
    "FileDamage",
    "ModelSource",
    "OnEvent",
    "RankedNode",
    "Run",
    "RunKind",
    "RunRecord",
    "RunStatus",
    "RunSummary",
    "collect_provenance",
    "create_run",
    "default_runs_dir",
    "join_names",
    "list_runs",
    "open_run",
    "read_candidate",
    "read_ranking",
    "record_heldout_look",
    "record_outcome",
    "run_ids",
    "split_names",
    "utc_timestamp",
]
