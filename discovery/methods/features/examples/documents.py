"""Texts, read as they are needed: a file of lines, JSON Lines, a task, or anything that gives prompts.

A document is a line that is not empty; of JSON Lines its `field`, or its token ids under "tokens", or both sides of a task's pair. No more
than one line is held at a time, and of a plain text no more than a part of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from discovery.errors import MeasurementError, StoreError
from discovery.graph.strict_json import dumps, loads
from discovery.store.files import explain_disk_errors
from discovery.tasks import BUILTIN
from discovery.tasks.pairs import Prompt
from discovery.tasks.task import Task

TextInput = str | Path | Task | Iterable[Prompt]

MAX_LINE_BYTES = 1 << 20  # bytes of a text's line that are read at a time
MAX_JSON_LINE_BYTES = 1 << 26  # bytes of a line of JSON


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        number: of its line from 1, or of the prompt. read: the share of the source that has been read; None where that is not known.
    """

    number: int
    prompt: Prompt
    read: float | None


@dataclass(frozen=True)
class DocumentStream:
    """A source of documents.

    Attributes:
        name: what it is called. fingerprint: sha256 of its content; None of what can be read once only.
    """

    name: str
    source: TextInput
    field: str = "text"
    fingerprint: str | None = None

    @classmethod
    def of(cls, source: TextInput, field: str = "text") -> DocumentStream:
        """Look at a source.

        Raises:
            MeasurementError: where there is no such file.
        """
        if isinstance(source, Task):
            ids = [(pair.clean, pair.corrupted) for pair in source.pairs]
            return cls(
                source.name, source, field, hashlib.sha256(dumps(ids).encode("ascii")).hexdigest()
            )
        if not isinstance(source, str | Path | Iterable):
            raise MeasurementError(
                f"The text is {source!r}.",
                "Name a file or a built-in task, or give a task or prompts.",
            )
        if not isinstance(source, str | Path):
            return cls("prompts", source, field)
        path = Path(source).expanduser()
        if not path.is_file():
            raise MeasurementError(
                f"There is no text file {str(source)!r}.",
                f"Name a file of lines, of JSON Lines (.jsonl), a task file or a built-in task ({', '.join(BUILTIN)}), or give prompts.",
            )
        whole = hashlib.sha256()
        with explain_disk_errors(path), open(path, "rb") as file:
            while part := file.read(MAX_LINE_BYTES):
                whole.update(part)
        return cls(path.name, path, field, whole.hexdigest())

    def __iter__(self) -> Iterator[Document]:
        """Every document.

        Raises:
            MeasurementError: a line that is no UTF-8, no JSON, or lacks the field; a file that changed meanwhile; what is no prompt.
        """
        if isinstance(self.source, Task):
            count = len(self.source.pairs)
            for number, pair in enumerate(self.source.pairs, start=1):
                yield from (
                    Document(number, side, number / count) for side in (pair.clean, pair.corrupted)
                )
        elif isinstance(self.source, Path):
            yield from self._file(self.source)
        else:
            yield from (
                Document(number, _prompt(prompt), None)
                for number, prompt in enumerate(self.source, start=1)
            )

    def _file(self, path: Path) -> Iterator[Document]:
        as_json = path.suffix in (".jsonl", ".ndjson")
        with explain_disk_errors(path), path.open("rb") as file:
            before = path.stat()
            for number, line in _lines(
                file, path, MAX_JSON_LINE_BYTES if as_json else MAX_LINE_BYTES, as_json
            ):
                where = f"{path.name}, line {number},"
                text = _decoded(line, where)
                prompts = _fields(text, where, self.field) if as_json else [text]
                share = file.tell() / max(1, before.st_size)
                yield from (Document(number, prompt, share) for prompt in prompts)
        now = path.stat()
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise MeasurementError(
                f"{path.name} changed while it was read.", "Ask again when it is written."
            )


def _lines(file: IO[bytes], path: Path, most: int, whole: bool) -> Iterator[tuple[int, bytes]]:
    """Lines that are not empty, with their numbers; a longer one in parts (which are cut between characters), or refused."""
    number, rest = 1, b""
    while True:
        with explain_disk_errors(path):
            line = file.readline(most)
        if not line and not rest:
            return
        ends = line.endswith(b"\n") or not line
        if not ends and len(line) == most and whole:
            raise MeasurementError(
                f"Line {number} of {path.name} has over {most:,} bytes.", "Cut it into several."
            )
        line, rest = rest + line, b""
        if not ends:
            kept = _count_whole_characters(line)
            line, rest = line[:kept], line[kept:]
        if line.strip():
            yield number, line
        number += ends


def _count_whole_characters(line: bytes) -> int:
    """How many of the bytes are whole characters of UTF-8."""
    for back in range(1, min(4, len(line)) + 1):
        byte = line[-back]
        if byte >= 0xC0:  # the first of a character
            return (
                len(line) - back
                if back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
                else len(line)
            )
        if byte < 0x80:
            break
    return len(line)


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as fault:
        raise MeasurementError(f"{where} is not UTF-8.", "Save the file as UTF-8.") from fault


def _fields(text: str, where: str, field: str) -> list[Prompt]:
    """What a line of JSON holds: the field, token ids, or both sides of a pair."""
    try:
        value = loads(text, where)
    except StoreError as fault:
        raise MeasurementError(
            f"{where} is no JSON.", "Mend the line, or give a plain text under another name."
        ) from fault
    found: Any = value if isinstance(value, dict) else {}
    prompts = [found[name] for name in (field, "tokens") if name in found][:1]
    prompts = prompts or [found[name] for name in ("clean", "corrupted") if name in found]
    if not prompts or not all(_is_prompt(prompt) for prompt in prompts):
        there = f"; it has {', '.join(map(str, list(found)[:8]))}" if found else ""
        raise MeasurementError(
            f"{where} has no text or token ids under {field!r}{there}.",
            "Name the field that holds the text.",
        )
    return [prompt if isinstance(prompt, str) else tuple(prompt) for prompt in prompts]


def _prompt(given: object) -> Prompt:
    """A prompt of the caller's own."""
    if isinstance(given, str) or (isinstance(given, Sequence) and not isinstance(given, bytes)):
        return given if isinstance(given, str) else tuple(given)
    raise MeasurementError(
        f"{given!r} is no prompt.", "Give a list of prompts, each a text or a list of token ids."
    )


def _is_prompt(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(type(token) is int for token in value)
    )
