from __future__ import annotations

import io
import time

import pytest

from discovery.cli.progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_shows_one_line_that_is_redrawn(clock: list[float]) -> None:
    terminal = Terminal()
    line = ProgressLine(terminal)
    line(0, 1000, "heads")
    line(1, 1000, "heads")  # too soon to draw again
    clock[0] += 1
    line(500, 1000, "heads")
    line.clear()
    line.clear()
    drawn = terminal.getvalue().split("\r\x1b[K")
    assert drawn == [
        "",
        "  0%  heads: 0 of about 1,000 forward-pass equivalents",
        " 50%  heads: 500 of about 1,000 forward-pass equivalents",
        "",
    ]


def test_a_narrow_terminal(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    ProgressLine(terminal)(0, 1000, "a long name")
    assert terminal.getvalue() == "\r\x1b[K  0%  a long name: "


def test_a_log_gets_a_line_now_and_then(clock: list[float]) -> None:
    log = io.StringIO()
    line = ProgressLine(log)
    for second in range(130):
        clock[0] = second
        line(second, 200, "heads" if second < 100 else "edges")
        line.clear()
    assert log.getvalue().splitlines() == [
        "  2%  heads: 5 of about 200 forward-pass equivalents",
        " 32%  heads: 65 of about 200 forward-pass equivalents",
        " 50%  edges: 100 of about 200 forward-pass equivalents",
    ]


def test_without_an_estimate_there_is_no_share(clock: list[float]) -> None:
    terminal = Terminal()
    line = ProgressLine(terminal)
    line(0, 0, "sweep")
    assert terminal.getvalue().endswith("      sweep: 0 forward-pass equivalents")
    line(7, 7, "")
    assert terminal.getvalue().endswith("      measuring: 7 forward-pass equivalents")


def test_a_stream_that_is_closed_or_missing(clock: list[float]) -> None:
    log = Terminal()
    log.close()
    for line in (ProgressLine(None), ProgressLine(Terminal(), quiet=True)):
        line(0, 1, "x")
        line.clear()
    open_then_closed = Terminal()
    line = ProgressLine(open_then_closed)
    open_then_closed.close()
    line(0, 1, "x")


def test_a_status_has_no_numbers(clock: list[float]) -> None:
    terminal = Terminal()
    ProgressLine(terminal).show_status("NDIF: queued: position 2")
    assert terminal.getvalue() == "\r\x1b[K      NDIF: queued: position 2"
