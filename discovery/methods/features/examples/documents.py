"""The documents of a text, read as they are needed.

A text is a file of lines, a JSON Lines file, a task, or any iterable of prompts. A document is

- a line of a text file that is not empty,
- of a line of JSON Lines: its `field`, or the token ids under "tokens", or both sides of a task's
pair,
- a side of a task's pair, or a prompt.

At most one line is in memory at a time, and of a plain text only a part of a very long line.
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

MAX_LINE_BYTES = 1 << 20  # a longer line of a plain text is read in parts
MAX_JSON_LINE_BYTES = 1 << 26  # a longer line of JSON is refused
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        number: number of its line, pair or prompt, counted from 1.
        prompt: its text or token ids.
        share_read: share of the text that has been read; None if the length is not known.
    """

    number: int
    prompt: Prompt
    share_read: float | None


@dataclass(frozen=True)
class DocumentStream:
    """A text whose documents can be iterated.

    Attributes:
        name: what the text is called.
        source: a file, a task or prompts.
        field: the field of a JSON line that holds the text.
        fingerprint: sha256 of the content; None if the text can be read only once.
    """

    name: str
    source: TextInput
    field: str = "text"
    fingerprint: str | None = None

    @classmethod
    def of(cls, source: TextInput, field: str = "text") -> DocumentStream:
        """Prepare a text for reading.

        Raises:
            MeasurementError: if there is no such file, or if the argument is not a text.
        """
        if isinstance(source, Task):
            ids = [(pair.clean, pair.corrupted) for pair in source.pairs]
            fingerprint = hashlib.sha256(dumps(ids).encode("ascii")).hexdigest()
            return cls(source.name, source, field, fingerprint)
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
                "Name a file of lines, of JSON Lines (.jsonl), a task file or a built-in task "
                f"({', '.join(BUILTIN)}), or give prompts.",
            )
        digest = hashlib.sha256()
        with explain_disk_errors(path), open(path, "rb") as file:
            while part := file.read(MAX_LINE_BYTES):
                digest.update(part)
        return cls(path.name, path, field, digest.hexdigest())

    def __iter__(self) -> Iterator[Document]:
        """Yield every document.

        Raises:
            MeasurementError: if a line is not UTF-8 or not JSON or lacks the field, if the file
                changes while it is read, or if an item is not a prompt.
        """
        if isinstance(self.source, Task):
            count = len(self.source.pairs)
            for number, pair in enumerate(self.source.pairs, start=1):
                for side in (pair.clean, pair.corrupted):
                    yield Document(number, side, number / count)
        elif isinstance(self.source, Path):
            yield from self._read_file(self.source)
        else:
            for number, prompt in enumerate(self.source, start=1):
                yield Document(number, _check_prompt(prompt), None)

    def _read_file(self, path: Path) -> Iterator[Document]:
        is_json = path.suffix in JSON_LINES_SUFFIXES
        max_bytes = MAX_JSON_LINE_BYTES if is_json else MAX_LINE_BYTES
        with explain_disk_errors(path), path.open("rb") as file:
            before = path.stat()
            for number, line in _lines(file, path, max_bytes, refuse_longer=is_json):
                location = f"{path.name}, line {number},"
                text = _decode(line, location)
                prompts = _prompts_of_json(text, location, self.field) if is_json else [text]
                share_read = file.tell() / max(1, before.st_size)
                for prompt in prompts:
                    yield Document(number, prompt, share_read)
        after = path.stat()
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise MeasurementError(
                f"{path.name} changed while it was read.",
                "Try again when the file is written completely.",
            )


def _lines(
    file: IO[bytes], path: Path, max_bytes: int, *, refuse_longer: bool
) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not empty, with their numbers.

    A line of more than `max_bytes` is refused, or it comes in parts that end between characters.
    """
    number = 1
    rest = b""  # the beginning of a character that the last part cut
    while True:
        with explain_disk_errors(path):
            line = file.readline(max_bytes)
        if not line and not rest:
            return
        is_complete = line.endswith(b"\n") or not line
        if not is_complete and len(line) == max_bytes and refuse_longer:
            raise MeasurementError(
                f"Line {number} of {path.name} has over {max_bytes:,} bytes.",
                "Split it into several lines.",
            )
        line = rest + line
        rest = b""
        if not is_complete:
            length = _whole_characters_length(line)
            rest = line[length:]
            line = line[:length]
        if line.strip():
            yield number, line
        number += is_complete


def _whole_characters_length(line: bytes) -> int:
    """Return how many of the bytes belong to complete UTF-8 characters."""
    for back in range(1, min(4, len(line)) + 1):
        byte = line[-back]
        if byte >= 0xC0:  # the first byte of the last character
            is_cut = back < _character_length(byte)
            return len(line) - back if is_cut else len(line)
        if byte < 0x80:
            break
    return len(line)


def _character_length(first_byte: int) -> int:
    """Return the bytes of a UTF-8 character that starts with this byte, which is 0xC0 or more."""
    if first_byte < 0xE0:
        return 2
    return 3 if first_byte < 0xF0 else 4


def _decode(line: bytes, location: str) -> str:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as fault:
        raise MeasurementError(f"{location} is not UTF-8.", "Save the file as UTF-8.") from fault


def _prompts_of_json(text: str, location: str, field: str) -> list[Prompt]:
    """Return what a line of JSON holds: the field, token ids, or both sides of a pair."""
    try:
        value = loads(text, location)
    except StoreError as fault:
        raise MeasurementError(
            f"{location} is not JSON.",
            "Correct the line, or rename the file if it is a plain text.",
        ) from fault
    content: dict[str, Any] = value if isinstance(value, dict) else {}
    prompts = [content[name] for name in (field, "tokens") if name in content][:1]
    prompts = prompts or [content[name] for name in ("clean", "corrupted") if name in content]
    if not prompts or not all(_is_prompt(prompt) for prompt in prompts):
        fields = f"; it has {', '.join(map(str, list(content)[:8]))}" if content else ""
        raise MeasurementError(
            f"{location} has no text or token ids under {field!r}{fields}.",
            "Name the field that holds the text.",
        )
    return [prompt if isinstance(prompt, str) else tuple(prompt) for prompt in prompts]


def _check_prompt(prompt: object) -> Prompt:
    """Return a caller's prompt if it is one."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes):
        return tuple(prompt)
    raise MeasurementError(
        f"{prompt!r} is not a prompt.",
        "Give a list of prompts, each a text or a list of token ids.",
    )


def _is_prompt(value: object) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, list) and all(type(token) is int for token in value)
