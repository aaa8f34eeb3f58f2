"""How the benchmarks print: Markdown tables on stdout, and everything else on stderr."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True)
class Output:
    """Where a benchmark writes.

    Attributes:
        stream: the table goes here.
        folder: an empty folder for models and runs, which is deleted at the end.
    """

    stream: TextIO
    folder: Path

    def write(self, text: str) -> None:
        """Write a part of the table at once, so that a long benchmark shows its progress."""
        self.stream.write(text)
        self.stream.flush()


@contextlib.contextmanager
def open_output() -> Iterator[Output]:
    """Yield where to write. Whatever else is printed meanwhile goes to stderr."""
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        yield Output(stdout, Path(folder))


def print_progress(*words: object) -> None:
    """Say on stderr what has been measured."""
    print(*words, file=sys.stderr, flush=True)


def format_header(*columns: str) -> str:
    """Return the first two lines of a table."""
    return format_row(*columns) + f"{'|---' * len(columns)}|\n"


def format_row(*cells: object) -> str:
    """Return one row of a table."""
    return "|" + "".join(f" {cell} |" if cell != "" else " |" for cell in cells) + "\n"


def format_list(lines: Iterable[str]) -> str:
    """Return a Markdown list."""
    return "".join(f"- {line}\n" for line in lines)
