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
from tests.discovery.cli.conftest import CommandResult, StubAgent


def interrupted(run_id: str | None) -> Interrupted:
    event: Any = Interrupted("SIGTERM")
    event.run_id = run_id
    return event


def test_what_the_caller_can_mend_is_a_cause_and_a_cure(
    scout: Callable[..., CommandResult], agent: StubAgent
) -> None:
    agent.fault = BudgetError("A budget of 3 does not reach.", "Raise --budget.")
    told = scout("-v", "discover", "--budget", "3")
    assert (told.status, told.out) == (2, "")
    assert told.err.endswith("error: A budget of 3 does not reach.\nfix: Raise --budget.\n")
    assert "Traceback" not in told.err


def test_a_fault_that_ended_a_run_says_how_to_go_on(
    scout: Callable[..., CommandResult], agent: StubAgent
) -> None:
    agent.fault = ModelError("NDIF does not answer.", "Try again later.")
    agent.fault.run_id = "ioi-x-1"
    told = scout("-q", "discover")
    assert told.status == 2
    assert told.err.endswith(
        "fix: Try again later.\nWhat was finished is kept; go on with:\n  circuit-scout discover --resume ioi-x-1\n"
    )


@pytest.mark.parametrize("words", [(), ("-q",)])
def test_an_interruption_says_how_to_go_on(
    words: tuple[str, ...], scout: Callable[..., CommandResult], agent: StubAgent
) -> None:
    agent.fault = interrupted("ioi-x-1")
    told = scout("discover", *words)
    assert (told.status, told.out) == (130, "")
    assert told.err.endswith("circuit-scout discover --resume ioi-x-1\n")


def test_an_interruption_names_a_runs_directory_that_is_not_the_usual_one(
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
    told = scout("discover", "-q")
    assert (told.status, told.err) == (130, "Interrupted.\n")


def test_a_bug_is_short_and_its_traceback_is_kept_beside_the_runs(
    scout: Callable[..., CommandResult], agent: StubAgent, runs_dir: Path
) -> None:
    agent.fault = ZeroDivisionError("division\nby zero")
    told = scout("-q", "discover")
    [log] = runs_dir.glob("bug-*.log")
    assert (told.status, told.out) == (1, "")
    assert told.err.splitlines()[0] == "This is a bug in Circuit Scout: ZeroDivisionError: division"
    assert str(log) in told.err
    assert "Traceback" not in told.err
    text = log.read_text(encoding="utf-8")
    assert text.startswith("circuit-scout -q discover\n")
    assert "Traceback" in text
    assert "ZeroDivisionError: division" in text
    assert list_runs(runs_dir) == []


def test_a_bug_shows_its_traceback_where_more_is_wanted(
    scout: Callable[..., CommandResult], agent: StubAgent, runs_dir: Path
) -> None:
    agent.fault = ZeroDivisionError("division by zero")
    told = scout("-v", "discover")
    assert told.status == 1
    assert "Traceback (most recent call last)" in told.err
    assert not list(runs_dir.glob("bug-*")) if runs_dir.exists() else True


def test_a_bug_shows_its_traceback_where_it_cannot_be_kept(
    scout: Callable[..., CommandResult], agent: StubAgent, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    agent.fault = ZeroDivisionError("division by zero")
    told = scout("discover", "--runs-dir", str(tmp_path / "file"))
    assert told.status == 1
    assert "Traceback (most recent call last)" in told.err


def test_sigterm_is_an_interruption(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(tasks, "format_columns", lambda rows: os.kill(os.getpid(), signal.SIGTERM))
    assert cli.main(["tasks"]) == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_leaves_signals_alone() -> None:
    def look() -> None:
        with sigterm_as_interrupt():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[Any] = []
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_a_reader_that_goes_away_is_no_fault(root: Path) -> None:
    command = [sys.executable, "-m", "mcp_server", "tasks", "--json"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command, cwd=root, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
