"""A text as pieces that can be read in any order: an index of byte ranges, so that a file of any size takes little memory.

A piece is a document: a line of a text file, or of a JSON Lines file with {"text": …} or {"tokens": [ids]} (`.jsonl`). A line of a
text that is longer than a few contexts is cut at a space. Blank lines are left out.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from discovery.backends.base import Backend
from discovery.errors import FeatureError, StoreError
from discovery.graph.strict_json import loads

JSON_LINES = ".jsonl"
BYTES_PER_TOKEN = 16  # a generous word
LEAST_PIECE, MOST_LINE = 4096, 1 << 24  # bytes
_FIX = 'Give a text with one document a line, or JSON Lines with {"text": "…"} or {"tokens": [1, 2, 3]}.'


@dataclass(frozen=True)
class Pieces:
    """The documents of a file.

    Attributes:
        fingerprint: sha256 of the file.
        content: in place of a file that is not written yet.
    """

    path: Path
    fingerprint: str
    starts: Sequence[int]
    ends: Sequence[int]
    content: bytes | None = None

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def of(cls, path: Path, context: int, content: bytes | None = None) -> Pieces:
        """Index a file.

        Raises:
            FeatureError: it is not there, cannot be read, or has a line of JSON that is too long.
        """
        digest, starts, ends = hashlib.sha256(), array("q"), array("q")
        json_lines = path.suffix == JSON_LINES
        most = MOST_LINE if json_lines else max(LEAST_PIECE, BYTES_PER_TOKEN * context)
        with _opened(path, content) as file:
            at = 0
            while piece := file.readline(most):
                if len(piece) == most and not piece.endswith(b"\n"):
                    if json_lines:
                        raise FeatureError(f"{path.name}, document {len(starts) + 1}, is longer than {most:,} bytes.", "Split it.")
                    piece = piece[: _cut(piece)]
                    file.seek(at + len(piece))
                if piece.strip():
                    starts.append(at)
                    ends.append(at + len(piece))
                digest.update(piece)
                at += len(piece)
        return cls(path, digest.hexdigest(), starts, ends, content)

    def rows(self, model: Backend, numbers: Sequence[int], context: int) -> Iterator[list[tuple[int, ...]]]:
        """Each of these documents as rows of at most `context` token ids; rows of one token are left out.

        Raises:
            FeatureError: a document that is no text, or has ids that the model lacks.
        """
        with _opened(self.path, self.content) as file:
            for number in numbers:
                file.seek(self.starts[number])
                ids = self._ids(model, number, file.read(self.ends[number] - self.starts[number]))
                cut = [tuple(ids[first : first + context]) for first in range(0, len(ids), context)]
                yield [row for row in cut if len(row) > 1]

    def _ids(self, model: Backend, number: int, content: bytes) -> Sequence[int]:
        where = f"{self.path.name}, document {number + 1},"
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            raise FeatureError(f"{where} is not UTF-8.", "Save the file as UTF-8.") from None
        if self.path.suffix != JSON_LINES:
            return _encoded(model, text.rstrip("\r\n"), where)
        try:
            line = loads(text, where)
        except StoreError as fault:
            raise FeatureError(f"{where} is not JSON.", _FIX, detail=fault.detail) from None
        told, ids = (line.get("text"), line.get("tokens")) if isinstance(line, dict) else (None, None)
        if isinstance(told, str):
            return _encoded(model, told, where)
        if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < model.d_vocab for token in ids):
            raise FeatureError(f"{where} has neither a text nor token ids from 0 to {model.d_vocab - 1}.", _FIX)
        return ids


def _encoded(model: Backend, text: str, where: str) -> list[int]:
    if model.tokenizer is None:
        raise FeatureError(f"{where} is text, and this model has no tokenizer.", 'Give JSON Lines with token ids: {"tokens": [1, 2, 3]}.')
    return model.tokenizer.encode(text)


def _cut(piece: bytes) -> int:
    """Where a long line is cut: before its last space, else before a letter."""
    if (space := piece.rfind(b" ")) > 0:
        return space
    end = len(piece)
    while end > 1 and piece[end - 1] & 0xC0 == 0x80:
        end -= 1
    return end - 1 if end > 1 and piece[end - 1] >= 0xC0 else end


def _opened(path: Path, content: bytes | None) -> BinaryIO:
    if content is not None:
        return BytesIO(content)
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise FeatureError(f"There is no file {str(path)!r}.", _FIX) from None
    except OSError as fault:
        raise FeatureError(f"{str(path)!r} cannot be read: {fault.strerror or fault}.", _FIX) from fault
