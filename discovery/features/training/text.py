"""A text as pieces that can be read in any order: an index of byte ranges, so that a file of any size takes little memory.

A piece is a document: a line of a text file, or of a JSON Lines file with {"text": …} or {"tokens": [ids]} (`.jsonl`). A line of a
text that is longer than a few contexts is cut at a space. Blank lines are left out.

The order in which documents are trained on: drawn anew for each pass by the seed, after some are set aside for the scores.

A place in that order is two numbers, so that a killed training goes on where it was. What is held out is never trained on, even where
the text says it twice.

What is trained on: a file as it is, or tasks and prompts, whose token ids are then written into the run's folder.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from discovery.backends.base import Backend
from discovery.errors import FeatureError, StoreError
from discovery.features.training.recipe import SAERecipe
from discovery.graph.strict_json import dumps, loads
from discovery.tasks import BUILTIN, TEXT_PAIRS, load_task
from discovery.tasks.pairs import Prompt
from discovery.tasks.task import Task

JSON_LINES_SUFFIX = ".jsonl"
BYTES_PER_TOKEN = 16  # a generous word
MIN_LINE_LIMIT_BYTES, MAX_JSON_DOCUMENT_BYTES = 4096, 1 << 24  # bytes
_FIX = 'Give a text with one document a line, or JSON Lines with {"text": "…"} or {"tokens": [1, 2, 3]}.'


@dataclass(frozen=True)
class DocumentIndex:
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
    def of(cls, path: Path, context: int, content: bytes | None = None) -> DocumentIndex:
        """Index a file.

        Raises:
            FeatureError: it is not there, cannot be read, or has a line of JSON that is too long.
        """
        digest, starts, ends = hashlib.sha256(), array("q"), array("q")
        json_lines = path.suffix == JSON_LINES_SUFFIX
        most = (
            MAX_JSON_DOCUMENT_BYTES
            if json_lines
            else max(MIN_LINE_LIMIT_BYTES, BYTES_PER_TOKEN * context)
        )
        with _open_text(path, content) as file:
            at = 0
            while piece := file.readline(most):
                if len(piece) == most and not piece.endswith(b"\n"):
                    if json_lines:
                        raise FeatureError(
                            f"{path.name}, document {len(starts) + 1}, is longer than {most:,} bytes.",
                            "Split it.",
                        )
                    piece = piece[: _cut_position(piece)]
                    file.seek(at + len(piece))
                if piece.strip():
                    starts.append(at)
                    ends.append(at + len(piece))
                digest.update(piece)
                at += len(piece)
        return cls(path, digest.hexdigest(), starts, ends, content)

    def rows(
        self, model: Backend, numbers: Sequence[int], context: int
    ) -> Iterator[list[tuple[int, ...]]]:
        """Each of these documents as rows of at most `context` token ids; rows of one token are left out.

        Raises:
            FeatureError: a document that is no text, or has ids that the model lacks.
        """
        with _open_text(self.path, self.content) as file:
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
        if self.path.suffix != JSON_LINES_SUFFIX:
            return _encode(model, text.rstrip("\r\n"), where)
        try:
            line = loads(text, where)
        except StoreError as fault:
            raise FeatureError(f"{where} is not JSON.", _FIX, detail=fault.detail) from None
        told, ids = (
            (line.get("text"), line.get("tokens")) if isinstance(line, dict) else (None, None)
        )
        if isinstance(told, str):
            return _encode(model, told, where)
        if not isinstance(ids, list) or not all(
            type(token) is int and 0 <= token < model.d_vocab for token in ids
        ):
            raise FeatureError(
                f"{where} has neither a text nor token ids from 0 to {model.d_vocab - 1}.", _FIX
            )
        return ids


def _encode(model: Backend, text: str, where: str) -> list[int]:
    if model.tokenizer is None:
        raise FeatureError(
            f"{where} is text, and this model has no tokenizer.",
            'Give JSON Lines with token ids: {"tokens": [1, 2, 3]}.',
        )
    return model.tokenizer.encode(text)


def _cut_position(piece: bytes) -> int:
    """Where a long line is cut: before its last space, else before a letter."""
    if (space := piece.rfind(b" ")) > 0:
        return space
    end = len(piece)
    while end > 1 and piece[end - 1] & 0xC0 == 0x80:
        end -= 1
    return end - 1 if end > 1 and piece[end - 1] >= 0xC0 else end


def _open_text(path: Path, content: bytes | None) -> BinaryIO:
    if content is not None:
        return BytesIO(content)
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise FeatureError(f"There is no file {str(path)!r}.", _FIX) from None
    except OSError as fault:
        raise FeatureError(
            f"{str(path)!r} cannot be read: {fault.strerror or fault}.", _FIX
        ) from fault


HELDOUT_EVERY, MAX_HELDOUT_TOKENS = 20, 16_384  # one document in so many, and the most tokens
DOCUMENTS_PER_READ = 64  # documents

Row = tuple[int, ...]


@dataclass(frozen=True)
class Cursor:
    """The next document: passes over the text that are done, and how many documents of this one."""

    epoch: int = 0
    document: int = 0


class TrainingRows:
    """The rows of a text.

    Attributes:
        heldout: rows for the scores. documents: how many are trained on. fingerprint: of the text.
    """

    def __init__(self, model: Backend, documents: DocumentIndex, recipe: SAERecipe) -> None:
        """Set some documents aside.

        Raises:
            FeatureError: fewer than two documents, or none of two tokens.
        """
        self._model, self._pieces, self._recipe = model, documents, recipe
        if len(documents) < 2:
            list(
                documents.rows(model, range(len(documents)), recipe.context)
            )  # a document that cannot be read is the more telling fault
            have = "one document" if len(documents) else "no document"
            raise FeatureError(
                f"{documents.path.name} has {have}, and one at least is held out.",
                "Give a text with a document a line.",
            )
        order = np.random.default_rng([recipe.seed]).permutation(len(documents))
        self.fingerprint = documents.fingerprint
        self.heldout: tuple[Row, ...] = ()
        taken = 0
        for number in order[: max(1, len(documents) // HELDOUT_EVERY)].tolist():
            self.heldout += tuple(
                row for rows in documents.rows(model, [number], recipe.context) for row in rows
            )
            taken += 1
            if sum(map(len, self.heldout)) >= MAX_HELDOUT_TOKENS:
                break
        self._own = order[taken:]
        self._withheld = frozenset(self.heldout)
        self.documents = len(self._own)
        self._order = lru_cache(maxsize=1)(self._shuffle_documents)
        if not self.heldout:
            raise FeatureError(
                f"The held-out documents of {documents.path.name} have no two tokens together.",
                "Give longer documents.",
            )

    def take(self, at: Cursor, positions: int, skip: int) -> tuple[list[Row], Cursor]:
        """The next rows, so many that they have `positions` positions behind their first `skip`; and what comes then.

        Raises:
            FeatureError: a whole pass over the text that gives nothing.
        """
        found: list[Row] = []
        have, start, began = 0, at, at.epoch
        while have < positions:
            order = self._order(start.epoch)
            numbers = order[start.document : start.document + DOCUMENTS_PER_READ].tolist()
            used = 0
            for rows in self._pieces.rows(self._model, numbers, self._recipe.context):
                kept = [row for row in rows if len(row) > skip and row not in self._withheld]
                found += kept
                have += sum(len(row) - skip for row in kept)
                used += 1
                if have >= positions:
                    break
            start = Cursor(start.epoch, start.document + used)
            if start.document >= len(order):
                start = Cursor(start.epoch + 1)
                if not found and start.epoch > began + 1:
                    raise FeatureError(
                        f"{self._pieces.path.name} has nothing to train on: its documents are single tokens, or all held out.",
                        "Give more and longer documents.",
                    )
        return found, start

    def _shuffle_documents(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._recipe.seed, epoch + 1]).permutation(self._own)


ROWS_FILE = "rows.jsonl"

TrainingInput = str | Path | Task | Sequence[Task] | Sequence[Prompt]


@dataclass(frozen=True)
class TrainingText:
    """A text.

    Attributes:
        path: of a file; else None, and content is what `rows.jsonl` holds.
    """

    name: str
    path: Path | None
    content: bytes | None = None

    def rows(self, model: Backend, recipe: SAERecipe) -> TrainingRows:
        """Its rows, some set aside.

        Raises:
            FeatureError: a text that cannot be read or is too short.
        """
        return TrainingRows(
            model,
            DocumentIndex.of(self.path or Path(ROWS_FILE), recipe.context, self.content),
            recipe,
        )


def resolve_text(model: Backend, text: TrainingInput) -> TrainingText:
    """What a caller gave; the name of a built-in task stands for `TEXT_PAIRS` pairs of it.

    Raises:
        FeatureError: nothing, or what is no text.
    """
    if isinstance(text, str) and text in BUILTIN:
        return resolve_text(model, load_task(text, model, pairs=TEXT_PAIRS))
    if isinstance(text, str | Path):
        path = Path(text).expanduser().absolute()
        return TrainingText(path.name, path)
    given = [text] if isinstance(text, Task) else list(text)
    tasks = [part for part in given if isinstance(part, Task)]
    if tasks and len(tasks) < len(given):
        raise FeatureError("Tasks and prompts were given together.", "Give one kind.")
    name = "+".join(task.name for task in tasks) or "prompts"
    pairs = [pair for task in tasks for pair in task.pairs]
    prompts: list[Prompt] = [prompt for pair in pairs for prompt in (pair.clean, pair.corrupted)]
    prompts = prompts or [part for part in given if not isinstance(part, Task)]
    lines: dict[tuple[int, ...], None] = {}
    for prompt in prompts:
        if isinstance(prompt, str) and model.tokenizer is None:
            raise FeatureError(
                "A prompt is text, and this model has no tokenizer.", "Give token ids."
            )
        if not isinstance(prompt, str) and not all(type(token) is int for token in prompt):
            raise FeatureError(f"{prompt!r} is no prompt.", "Give texts, or tuples of token ids.")
        ids = (
            model.tokenizer.encode(prompt)
            if model.tokenizer is not None and isinstance(prompt, str)
            else prompt
        )
        lines[tuple(ids)] = None  # type: ignore[arg-type]  # a prompt that is no text is ids
    return TrainingText(
        name, None, "".join(dumps({"tokens": list(ids)}) + "\n" for ids in lines).encode("ascii")
    )
