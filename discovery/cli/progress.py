"""How far the work is, on one line: redrawn on a terminal; elsewhere a line now and then, so that a log stays short.

The unit is the forward-pass equivalent, in which budgets are given too; of a training it is the token.
"""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from typing import TextIO

_REDRAW_SECONDS = 0.1  # seconds between two drawings
_LOG_SECONDS_NEW_WORK, _LOG_SECONDS_SAME_WORK = (
    5.0,
    60.0,
)  # seconds between two lines of a log: about new work, about the same


class ProgressLine:
    """A `discovery.engine.Progress`: called with what is done, what is to do, and what it is.

    Args:
        stream: standard error.
        quiet: say nothing.

    Attributes:
        unit: of what is done.
    """

    def __init__(self, stream: TextIO | None, *, quiet: bool = False) -> None:
        self.unit = "forward-pass equivalents"
        self._stream = None if quiet else stream
        self._live = stream is not None and not quiet and stream.isatty()
        self._what = ""
        self._drawn = time.monotonic()
        self._shown = False

    def __call__(self, done: float, total: float, what: str) -> None:
        self._update(what, _line(done, total, what, self.unit))

    def show_status(self, what: str) -> None:
        """What is waited for, where nothing is counted."""
        self._update(what, f"      {what}")

    def _update(self, what: str, line: str) -> None:
        new, waited = what != self._what, time.monotonic() - self._drawn
        if self._live:
            due = new or waited >= _REDRAW_SECONDS
        else:
            due = waited >= (_LOG_SECONDS_NEW_WORK if new else _LOG_SECONDS_SAME_WORK)
        if due:
            self._what = what
            self._drawn = time.monotonic()
            self._show(line)

    def clear(self) -> None:
        """Make room for a message."""
        if self._shown:
            self._shown = False
            self._write("\r\x1b[K")

    def _show(self, line: str) -> None:
        if self._live:
            self._shown = True
            self._write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
        else:
            self._write(f"{line}\n")

    def _write(self, text: str) -> None:
        if self._stream is not None:
            with suppress(OSError, ValueError):  # nobody listens: the work goes on
                self._stream.write(text)
                self._stream.flush()


def _line(done: float, total: float, what: str, unit: str) -> str:
    what = what or "measuring"
    if (
        done >= total
    ):  # done, or never estimated: `discovery.engine.Meter` then gives what is done as the total
        return f"      {what}: {done:,.0f} {unit}"
    return f"{done / total:4.0%}  {what}: {done:,.0f} of about {total:,.0f} {unit}"
