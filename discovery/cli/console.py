"""The output of a command: results go to standard output, and everything else to standard error.

TransformerLens and other libraries print. While a command runs, file descriptor 1 and `sys.stdout`
therefore lead to standard error, and only the `Console` can write to the real standard output. In a
text for a person, control characters are written as escapes, because a prompt or a file name may
contain them.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

from discovery.cli.progress import ProgressLine
from discovery.errors import StoreError

if TYPE_CHECKING:
    from discovery.agent import Outlook

_TQDM_VARIABLE = "TQDM_DISABLE"


class Console:
    """The output of one command.

    Args:
        results: the file descriptor of the real standard output.
        encoding: the encoding of texts for a person.
        verbose: whether single decisions of a run are shown too.
        quiet: whether only results, warnings and errors are shown.

    Attributes:
        progress: the progress line, which a command gives to a measurement.
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
        """Write a document for a program, unchanged and in UTF-8.

        Raises:
            BrokenPipeError: if the reader of standard output is gone.
            StoreError: if standard output cannot be written for another reason.
        """
        self._send(document.encode("utf-8", "backslashreplace"))

    def write_json(self, value: object) -> None:
        """Write a value as one strict JSON document. Raises as `write_document` does."""
        from discovery.graph.strict_json import dumps

        self.write_document(dumps(value, indent=2) + "\n")

    def write_result(self, text: str) -> None:
        """Write a result for a person. Raises as `write_document` does."""
        self._send(f"{escape_unprintable(text)}\n".encode(self._encoding, "backslashreplace"))

    def write_note(self, text: str) -> None:
        """Write a message about the work to standard error, unless the console is quiet."""
        if not self.quiet:
            self.write_warning(text)

    def write_warning(self, text: str) -> None:
        """Write a message to standard error, even if the console is quiet."""
        self.progress.clear()
        write_to_stderr(text)

    def write_warning_notes(self, warnings: Iterable[str]) -> None:
        """Write the warnings about a model, a task or a text, unless the console is quiet."""
        for warning in warnings:
            self.write_note(f"warning: {warning}")

    def report_event(self, event: Mapping[str, Any]) -> None:
        """Write what a stage of a run concluded, and why.

        Single decisions within a stage are shown only if the console is verbose.
        """
        if event.get("kind") == "decision" and not self.verbose:
            return
        stage = str(event.get("stage") or "")
        concluded = str(event.get("concluded") or "")
        why = str(event.get("why") or "")
        self.write_note(": ".join(part for part in (stage, concluded) if part))
        if why:
            self.write_note(f"    {why}")

    def report_outlook(self, outlook: Outlook) -> None:
        """Write how far a run is after a stage, and how long the rest takes."""
        if outlook.total > outlook.done:
            self.write_note(f"    {outlook.describe()}")

    def _send(self, content: bytes) -> None:
        self.progress.clear()
        unwritten = memoryview(content)
        try:
            while unwritten:
                unwritten = unwritten[os.write(self._results, unwritten) :]
        except BrokenPipeError:
            raise
        except OSError as fault:
            raise StoreError(
                f"Standard output cannot be written: {fault.strerror}.",
                "Redirect it to another file; a finished run is on disk.",
            ) from fault


@contextmanager
def divert_stdout(*, verbose: bool, quiet: bool) -> Iterator[Console]:
    """Send standard output to standard error, except for what the yielded `Console` writes."""
    _flush_stdout()
    results = _duplicate(1)
    errors = _duplicate(2)
    os.dup2(errors, 1)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    console = Console(results, encoding, verbose=verbose, quiet=quiet)
    try:
        with redirect_stdout(sys.stderr), _suppress_library_output() if quiet else nullcontext():
            yield console
    finally:
        console.progress.clear()
        # What a library left in the buffer of sys.stdout must not reach the real standard output.
        _flush_stdout()
        os.dup2(results, 1)
        os.close(results)
        os.close(errors)


def write_to_stderr(text: str) -> None:
    """Write one message to standard error, or nothing if it is closed."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{escape_unprintable(text)}\n")
        sys.stderr.flush()


@contextmanager
def _suppress_library_output() -> Iterator[None]:
    """Hide warnings, and the progress bars of libraries that are imported inside the context."""
    previous = os.environ.get(_TQDM_VARIABLE)
    os.environ[_TQDM_VARIABLE] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ.pop(_TQDM_VARIABLE)
        if previous is not None:
            os.environ[_TQDM_VARIABLE] = previous


def _flush_stdout() -> None:
    with suppress(OSError, AttributeError):  # its reader is gone, or there is no sys.stdout
        sys.stdout.flush()


def escape_unprintable(text: str) -> str:
    """Return the text with everything unprintable written as escapes.

    This includes the escape sequences of a terminal.
    """
    return "".join(
        letter
        if letter.isprintable() or letter in "\n\t"
        else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def _duplicate(descriptor: int) -> int:
    """Return another descriptor for the same file, or for os.devnull if that is closed."""
    try:
        return os.dup(descriptor)
    except OSError:
        devnull = os.open(os.devnull, os.O_WRONLY)
        # The new file may have got the number of the closed descriptor.
        return os.dup(devnull) if devnull == descriptor else devnull


def format_columns(rows: Sequence[Sequence[str]], indent: int = 2) -> str:
    """Return rows of words as a table, in which each column is as wide as its widest cell.

    >>> format_columns([("ioi", "names"), ("induction", "copies")], indent=0).splitlines()
    ['ioi        names', 'induction  copies']
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return "\n".join(" " * indent + line for line in lines)
