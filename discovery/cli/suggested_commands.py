"""Commands that a message suggests, ready to be pasted.

They name the runs directory if it is not the default one.
"""

from __future__ import annotations

import shlex
from pathlib import Path

DISCOVER_COMMAND = "discover"
TRAIN_COMMAND = "sae train"


def format_resume_command(
    run_id: str, runs_dir: Path | None, command: str = DISCOVER_COMMAND
) -> str:
    """Return the command that resumes an interrupted run."""
    return f"circuit-scout {command} --resume {run_id}{_runs_dir_flag(runs_dir)}"


def format_runs_command(verb: str, run_id: str, runs_dir: Path | None, *flags: str) -> str:
    """Return the command that applies a verb of `runs` to a run."""
    return " ".join(["circuit-scout", "runs", verb, run_id, *flags]) + _runs_dir_flag(runs_dir)


def _runs_dir_flag(runs_dir: Path | None) -> str:
    from discovery.store import default_runs_dir

    is_default = runs_dir is None or runs_dir.absolute() == default_runs_dir().absolute()
    return "" if is_default else f" --runs-dir {shlex.quote(str(runs_dir))}"
