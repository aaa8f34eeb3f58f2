"""Show progress on one line of standard error.

On a terminal the line is redrawn. Elsewhere a line is written now and then, so that a log stays
short. Work is counted in the unit of the `Progress`: forward-pass equivalents, in which budgets are
given too, or tokens for a training.
"""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from typing import TextIO

from discovery.progress import Progress, ProgressListener

_REDRAW_SECONDS = 0.1  # between two drawings on a terminal
_LOG_SECONDS_NEW_WORK = 5.0  # between two lines of a log, if the second is about new work
_LOG_SECONDS_SAME_WORK = 60.0  # between two lines of a log about the same work


class ProgressLine(ProgressListener):
    """Draws the progress that it receives.

    Args:
        stream: standard error; None draws nothing.
        quiet: draw nothing.
    """

    def __init__(self, stream: TextIO | None, *, quiet: bool = False) -> None:
        self._stream = None if quiet else stream
        self._live = stream is not None and not quiet and stream.isatty()
        self._label = ""
        self._drawn = time.monotonic()
        self._shown = False

    def update(self, progress: Progress) -> None:
        """Draw the progress, unless the last drawing was only a moment ago."""
        self._draw_if_due(progress.label, _format_line(progress))

    def show_status(self, status: str) -> None:
        """Show what is waited for while no work is counted."""
        self._draw_if_due(status, f"      {status}")

    def _draw_if_due(self, label: str, line: str) -> None:
        is_new = label != self._label
        waited = time.monotonic() - self._drawn
        if self._live:
            is_due = is_new or waited >= _REDRAW_SECONDS
        else:
            is_due = waited >= (_LOG_SECONDS_NEW_WORK if is_new else _LOG_SECONDS_SAME_WORK)
        if is_due:
            self._label = label
            self._drawn = time.monotonic()
            self._show(line)

    def clear(self) -> None:
        """Erase the line, so that a message can be written in its place."""
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
            with suppress(OSError, ValueError):  # the stream is closed: the work goes on
                self._stream.write(text)
                self._stream.flush()


def _format_line(progress: Progress) -> str:
    label = progress.label or "measuring"
    done = progress.done
    if done >= progress.total:  # complete, or there is no estimate
        return f"      {label}: {done:,.0f} {progress.unit}"
    share = done / progress.total
    return f"{share:4.0%}  {label}: {done:,.0f} of about {progress.total:,.0f} {progress.unit}"
