from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from discovery import cli
from discovery.cli.commands import tasks
from discovery.cli.exit_status import sigterm_as_interrupt
from discovery.errors import BudgetError, Interrupted, ModelError
from discovery.store import list_runs
from tests.discovery.cli.stand_ins import CommandResult, StubAgent


def interrupted(run_id: str | None) -> Interrupted:
    event: Any = Interrupted("SIGTERM")
    event.run_id = run_id
    return event


def test_an_error_of_the_caller_shows_a_cause_and_a_fix(
    scout: Callable[..., CommandResult], agent: StubAgent
) -> None:
    agent.fault = BudgetError("A budget of 3 does not reach.", "Raise --budget.")
    result = scout("-v", "discover", "--budget", "3")
    assert (result.status, result.out) == (2, "")
    assert result.err.endswith("error: A budget of 3 does not reach.\nfix: Raise --budget.\n")
    assert "Traceback" not in result.err


def test_an_error_that_ends_a_run_shows_how_to_resume_it(
    scout: Callable[..., CommandResult], agent: StubAgent
) -> None:
    agent.fault = ModelError("NDIF does not answer.", "Try again later.")
    agent.fault.run_id = "ioi-x-1"
    result = scout("-q", "discover")
    assert result.status == 2
    assert result.err.endswith(
        "fix: Try again later.\nThe finished part is kept. To resume, run:\n"
        "  circuit-scout discover --resume ioi-x-1\n"
    )


@pytest.mark.parametrize("words", [(), ("-q",)])
def test_an_interruption_shows_how_to_resume(
    words: tuple[str, ...], scout: Callable[..., CommandResult], agent: StubAgent
) -> None:
    agent.fault = interrupted("ioi-x-1")
    result = scout("discover", *words)
    assert (result.status, result.out) == (130, "")
    assert result.err.endswith("circuit-scout discover --resume ioi-x-1\n")


def test_an_interruption_names_a_runs_directory_that_is_not_the_default(
    scout: Callable[..., CommandResult], agent: StubAgent, tmp_path: Path
) -> None:
    agent.fault = interrupted("ioi-x-1")
    place = tmp_path / "other runs"
    assert scout("discover", "--runs-dir", str(place)).err.endswith(
        f"--resume ioi-x-1 --runs-dir '{place}'\n"
    )


@pytest.mark.parametrize("event", [KeyboardInterrupt(), interrupted(None)])
def test_an_interruption_before_there_is_a_run(
    event: BaseException, scout: Callable[..., CommandResult], agent: StubAgent
) -> None:
    agent.fault = event
    result = scout("discover", "-q")
    assert (result.status, result.err) == (130, "Interrupted.\n")


def test_a_bug_is_short_and_its_traceback_is_kept_beside_the_runs(
    scout: Callable[..., CommandResult], agent: StubAgent, runs_dir: Path
) -> None:
    agent.fault = ZeroDivisionError("division\nby zero")
    result = scout("-q", "discover")
    [log] = runs_dir.glob("bug-*.log")
    assert (result.status, result.out) == (1, "")
    assert (
        result.err.splitlines()[0] == "This is a bug in Circuit Scout: ZeroDivisionError: division"
    )
    assert str(log) in result.err
    assert "Traceback" not in result.err
    text = log.read_text(encoding="utf-8")
    assert text.startswith("circuit-scout -q discover\n")
    assert "Traceback" in text
    assert "ZeroDivisionError: division" in text
    assert list_runs(runs_dir) == []


def test_a_bug_shows_its_traceback_if_verbose(
    scout: Callable[..., CommandResult], agent: StubAgent, runs_dir: Path
) -> None:
    agent.fault = ZeroDivisionError("division by zero")
    result = scout("-v", "discover")
    assert result.status == 1
    assert "Traceback (most recent call last)" in result.err
    assert not list(runs_dir.glob("bug-*")) if runs_dir.exists() else True


def test_a_bug_shows_its_traceback_if_no_log_can_be_written(
    scout: Callable[..., CommandResult], agent: StubAgent, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    agent.fault = ZeroDivisionError("division by zero")
    result = scout("discover", "--runs-dir", str(tmp_path / "file"))
    assert result.status == 1
    assert "Traceback (most recent call last)" in result.err


def test_sigterm_is_an_interruption(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(tasks, "format_columns", lambda rows: os.kill(os.getpid(), signal.SIGTERM))
    assert cli.main(["tasks"]) == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_leaves_signals_alone() -> None:
    def read_handler() -> None:
        with sigterm_as_interrupt():
            handlers.append(signal.getsignal(signal.SIGTERM))

    handlers: list[Any] = []
    thread = threading.Thread(target=read_handler)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


def test_a_reader_that_is_gone_is_not_an_error(root: Path) -> None:
    command = [sys.executable, "-m", "mcp_server", "tasks", "--json"]
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        command, cwd=root, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (0, "")
