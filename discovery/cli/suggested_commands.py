"""The commands that go on from here, ready to be pasted: they name the runs directory where it is not the usual one."""

from __future__ import annotations

import shlex
from pathlib import Path

DISCOVER_COMMAND, TRAIN_COMMAND = "discover", "sae train"


def format_resume_command(
    run_id: str, runs_dir: Path | None, command: str = DISCOVER_COMMAND
) -> str:
    """Goes on with an interrupted run."""
    return f"circuit-scout {command} --resume {run_id}{_runs_dir_flag(runs_dir)}"


def format_runs_command(verb: str, run_id: str, runs_dir: Path | None, *more: str) -> str:
    """Does something with a run that is kept."""
    return " ".join(["circuit-scout", "runs", verb, run_id, *more]) + _runs_dir_flag(runs_dir)


def _runs_dir_flag(runs_dir: Path | None) -> str:
    from discovery.store import default_runs_dir

    usual = runs_dir is None or runs_dir.absolute() == default_runs_dir().absolute()
    return "" if usual else f" --runs-dir {shlex.quote(str(runs_dir))}"
