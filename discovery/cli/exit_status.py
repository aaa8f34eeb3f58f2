"""How a command ends: its exit status, and what is said when it did not complete.

0 completed, or the reader of standard output went away; 2 something that the caller can mend, told as one line
of cause and one of cure; 130 interrupted, with the command that goes on; 1 a bug, whose traceback is kept.

SIGTERM, taken as Ctrl-C is, so that a run which is told to stop closes its folder and can be resumed.
"""

from __future__ import annotations

import argparse
import platform
import secrets
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from discovery.cli.arguments import RUNS_DIR
from discovery.cli.console import Console, write_to_stderr
from discovery.cli.suggested_commands import DISCOVER_COMMAND, format_resume_command
from discovery.errors import DiscoveryError, Interrupted

EXIT_COMPLETED, EXIT_BUG, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130


def run_command(args: argparse.Namespace, console: Console) -> int:
    """Do what was asked for.

    Args:
        args: `run` does it, given `args` and `console`.
        console: where it speaks.

    Returns:
        the exit status.
    """
    try:
        args.run(args, console)
    except BrokenPipeError:
        return EXIT_COMPLETED
    except DiscoveryError as fault:
        console.progress.clear()
        status = report_error(fault)
        if fault.run_id is not None:
            console.write_warning(_resume_hint(args, fault.run_id))
        return status
    except (KeyboardInterrupt, Interrupted) as event:
        console.write_warning(_interruption_message(args, event))
        return EXIT_INTERRUPTED
    except Exception as fault:  # noqa: BLE001  # a bug: the one place where it is told instead of shown
        console.write_warning(_bug_message(args, fault, verbose=console.verbose))
        return EXIT_BUG
    return EXIT_COMPLETED


def report_error(fault: DiscoveryError) -> int:
    """Say what the caller can mend; returns the exit status."""
    said = f"\n  ({fault.detail})" if fault.detail else ""
    write_to_stderr(f"error: {fault.cause}{said}\nfix: {fault.cure}")
    return EXIT_BAD_INPUT


def _interruption_message(args: argparse.Namespace, event: BaseException) -> str:
    run_id = getattr(event, "run_id", None)
    if run_id is None:
        return "Interrupted."
    return f"Interrupted. {_resume_hint(args, run_id)}"


def _resume_hint(args: argparse.Namespace, run_id: str) -> str:
    again = format_resume_command(
        run_id, RUNS_DIR.flag_value(args), getattr(args, "resumed_by", DISCOVER_COMMAND)
    )
    return f"What was finished is kept; go on with:\n  {again}"


def _bug_message(args: argparse.Namespace, fault: Exception, *, verbose: bool) -> str:
    trace = "".join(traceback.format_exception(fault))
    short = f"This is a bug in Circuit Scout: {type(fault).__name__}: {str(fault).strip().partition(chr(10))[0][:200]}"
    if verbose:
        return f"{trace}{short}"
    try:
        return f"{short}\nThe traceback is in {_write_bug_log(args, trace)}; please report it with the command that you gave."
    except DiscoveryError:  # nowhere to write
        return f"{trace}{short}"


def _write_bug_log(args: argparse.Namespace, trace: str) -> Path:
    """Write a traceback into the runs directory, beside the runs."""
    from discovery.store import default_runs_dir
    from discovery.store.files import write_bytes

    moment = datetime.now(UTC)
    path = (
        RUNS_DIR.resolve_value(args) or default_runs_dir()
    ) / f"bug-{moment:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}.log"
    heading = f"{args.command}\n{moment:%Y-%m-%dT%H:%M:%SZ}, Python {platform.python_version()} on {platform.platform()}\n\n"
    write_bytes(path, (heading + trace).encode("utf-8", "backslashreplace"))
    return path


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt in here: not an Exception, so that no library takes it for a fault and goes on.

    Where this is not the main thread, which alone may say so, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
