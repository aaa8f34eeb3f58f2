"""What a command says, and where: results to standard output, everything else to standard error.

TransformerLens and its friends print. While a command runs, file descriptor 1 and `sys.stdout` lead to standard
error, and only `Console` still has the standard output that was there before. What a person reads is shown
without control characters, which a prompt or a file's name might carry.

Rows of words as columns of text.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import Any

from discovery.cli.progress import ProgressLine
from discovery.errors import StoreError

_TQDM_VARIABLE = "TQDM_DISABLE"


class Console:
    """The voice of one command.

    Args:
        results: descriptor of the real standard output.
        encoding: of what a person reads there.
        verbose: say more.
        quiet: say only results and errors.

    Attributes:
        progress: to be given to a measurement.
    """

    def __init__(
        self, results: int, encoding: str, *, verbose: bool = False, quiet: bool = False
    ) -> None:
        self._results = results
        self._encoding = encoding
        self.verbose = verbose
        self.quiet = quiet
        self.progress = ProgressLine(sys.stderr, quiet=quiet)

    def write_document(self, document: str) -> None:
        """A document for a program, as it is, in UTF-8.

        Raises:
            BrokenPipeError: where its reader went away.
            StoreError: where it cannot be written for another reason.
        """
        self._send(document.encode("utf-8", "backslashreplace"))

    def write_result(self, text: str) -> None:
        """A result for a person; raises as `write` does."""
        self._send(f"{escape_unprintable(text)}\n".encode(self._encoding, "backslashreplace"))

    def write_note(self, text: str) -> None:
        """Something about the work, unless quiet is wanted."""
        if not self.quiet:
            self.write_warning(text)

    def write_warning(self, text: str) -> None:
        """Something that must be known even where quiet is wanted."""
        self.progress.clear()
        write_to_stderr(text)

    def report_event(self, event: Mapping[str, Any]) -> None:
        """What a stage of a run concluded, and why; single decisions within a stage only where more is wanted."""
        if event.get("kind") == "decision" and not self.verbose:
            return
        stage, concluded, why = (
            str(event.get(name) or "") for name in ("stage", "concluded", "why")
        )
        self.write_note(": ".join(part for part in (stage, concluded) if part))
        if why:
            self.write_note(f"    {why}")

    def _send(self, content: bytes) -> None:
        self.progress.clear()
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[os.write(self._results, rest) :]
        except BrokenPipeError:
            raise
        except OSError as fault:
            raise StoreError(
                f"Standard output cannot be written: {fault.strerror}.",
                "Send it elsewhere; a finished run is on disk.",
            ) from fault


@contextmanager
def divert_stdout(*, verbose: bool, quiet: bool) -> Iterator[Console]:
    """Standard output leads to standard error in here, but for the `Console` that is given."""
    _flush()
    results, errors = _duplicate(1), _duplicate(2)
    os.dup2(errors, 1)
    console = Console(
        results, getattr(sys.stdout, "encoding", None) or "utf-8", verbose=verbose, quiet=quiet
    )
    try:
        with redirect_stdout(sys.stderr), _suppress_library_output() if quiet else nullcontext():
            yield console
    finally:
        console.progress.clear()
        _flush()  # what a library kept in the buffer of sys.stdout, before descriptor 1 is itself again
        os.dup2(results, 1)
        os.close(results)
        os.close(errors)


def write_to_stderr(text: str) -> None:
    """One message on standard error; where that is gone, nothing."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{escape_unprintable(text)}\n")
        sys.stderr.flush()


@contextmanager
def _suppress_library_output() -> Iterator[None]:
    """No warnings and no progress bars of libraries that are first imported in here."""
    before = os.environ.get(_TQDM_VARIABLE)
    os.environ[_TQDM_VARIABLE] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ.pop(_TQDM_VARIABLE)
        if before is not None:
            os.environ[_TQDM_VARIABLE] = before


def _flush() -> None:
    with suppress(OSError, AttributeError):  # nobody listens, or there is none
        sys.stdout.flush()


def escape_unprintable(text: str) -> str:
    """`text` with what cannot be printed, escape sequences of a terminal among it, written as escapes."""
    return "".join(
        letter
        if letter.isprintable() or letter in "\n\t"
        else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def _duplicate(descriptor: int) -> int:
    """Another descriptor for the same file, or for nowhere where the descriptor is closed."""
    try:
        return os.dup(descriptor)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        return (
            os.dup(nowhere) if nowhere == descriptor else nowhere
        )  # it took the closed one's place


def format_columns(rows: Sequence[Sequence[str]], indent: int = 2) -> str:
    """The rows under one another, each column as wide as its widest cell, the last one ragged.

    >>> columns([("ioi", "names"), ("induction", "copies")], indent=0).splitlines()
    ['ioi        names', 'induction  copies']
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return "\n".join(" " * indent + line for line in lines)
