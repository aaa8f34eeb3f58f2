"""How a command ends: its exit status, and what it prints if it did not complete.

- 0: the command completed, or the reader of standard output is gone.
- 2: the caller can fix the problem. One line gives the cause, and one line the fix.
- 3: `runs verify` completed, and the record does not hold.
- 130: the command was interrupted. The message gives the command that resumes the run.
- 1: a bug. The traceback is written to a file.

SIGTERM interrupts a command as Ctrl-C does, so that a run closes its folder and can be resumed.
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

EXIT_COMPLETED = 0
EXIT_BUG = 1
EXIT_BAD_INPUT = 2
EXIT_DOES_NOT_HOLD = 3
EXIT_INTERRUPTED = 130


def run_command(args: argparse.Namespace, console: Console) -> int:
    """Run one command, and report how it ended.

    Args:
        args: the parsed command line. Its `run` is the function of the command, which gets `args`
            and `console`, and returns an exit status or None for "completed".
        console: the output of the command.

    Returns:
        The exit status.
    """
    try:
        status: int | None = args.run(args, console)
    except BrokenPipeError:
        return EXIT_COMPLETED
    except DiscoveryError as fault:
        console.progress.clear()
        bad_input = report_error(fault)
        if fault.run_id is not None:
            console.write_warning(_resume_hint(args, fault.run_id))
        return bad_input
    except (KeyboardInterrupt, Interrupted) as event:
        console.write_warning(_interruption_message(args, event))
        return EXIT_INTERRUPTED
    # A bug. This is the one place that reports it in a sentence instead of with a traceback.
    except Exception as fault:  # noqa: BLE001
        console.write_warning(_bug_message(args, fault, verbose=console.verbose))
        return EXIT_BUG
    return EXIT_COMPLETED if status is None else status


def report_error(fault: DiscoveryError) -> int:
    """Print an error that the caller can fix, and return the exit status."""
    detail = f"\n  ({fault.detail})" if fault.detail else ""
    write_to_stderr(f"error: {fault.cause}{detail}\nfix: {fault.cure}")
    return EXIT_BAD_INPUT


def _interruption_message(args: argparse.Namespace, event: BaseException) -> str:
    run_id = getattr(event, "run_id", None)
    if run_id is None:
        return "Interrupted."
    return f"Interrupted. {_resume_hint(args, run_id)}"


def _resume_hint(args: argparse.Namespace, run_id: str) -> str:
    command = getattr(args, "resumed_by", DISCOVER_COMMAND)
    resume_command = format_resume_command(run_id, RUNS_DIR.flag_value(args), command)
    return f"The finished part is kept. To resume, run:\n  {resume_command}"


def _bug_message(args: argparse.Namespace, fault: Exception, *, verbose: bool) -> str:
    trace = "".join(traceback.format_exception(fault))
    first_line = str(fault).strip().partition("\n")[0][:200]
    summary = f"This is a bug in Circuit Scout: {type(fault).__name__}: {first_line}"
    if verbose:
        return f"{trace}{summary}"
    try:
        log = _write_bug_log(args, trace)
    except DiscoveryError:  # the log cannot be written
        return f"{trace}{summary}"
    return f"{summary}\nThe traceback is in {log}; please report it with the command that you gave."


def _write_bug_log(args: argparse.Namespace, trace: str) -> Path:
    """Write a traceback into the runs directory, and return the path of the file."""
    from discovery.store import default_runs_dir
    from discovery.store.files import write_bytes

    now = datetime.now(UTC)
    folder = RUNS_DIR.resolve_value(args) or default_runs_dir()
    path = folder / f"bug-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}.log"
    system = f"Python {platform.python_version()} on {platform.platform()}"
    heading = f"{args.command}\n{now:%Y-%m-%dT%H:%M:%SZ}, {system}\n\n"
    write_bytes(path, (heading + trace).encode("utf-8", "backslashreplace"))
    return path


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt inside the context when SIGTERM arrives.

    KeyboardInterrupt is not an Exception, so that no library catches it and continues. Only the
    main thread may handle signals: in another thread, the context does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
