"""The text that an SAE is trained on: what it is, its documents, and the order of its rows.

A text is a file as it is, or tasks and prompts, whose token ids are then written into the run's
folder. `DocumentIndex` finds the documents of a file, so that they can be read in any order while a
file of any size takes little memory. A document is a line of a text file, or a line of a JSON Lines
file (`.jsonl`) with {"text": …} or {"tokens": [ids]}. A line of a text file that is longer than a
few contexts is cut at a space. Blank lines are left out.

`TrainingRows` sets some documents aside for the scores, and gives the rows of the others. Their
order is drawn anew for each pass over the text, by the seed. A place in this order is two numbers,
so that a killed training can continue where it was. A row that is held out is never trained on,
even if the text contains it twice.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from discovery.backends.base import Backend
from discovery.errors import FeatureError, StoreError
from discovery.features.training.recipe import SAERecipe
from discovery.graph.strict_json import dumps, loads
from discovery.tasks import BUILTIN, TEXT_PAIRS, load_task
from discovery.tasks.pairs import Prompt
from discovery.tasks.task import Task

TrainingInput = str | Path | Task | Sequence[Task] | Sequence[Prompt]
Row = tuple[int, ...]

ROWS_FILE = "rows.jsonl"
JSON_LINES_SUFFIX = ".jsonl"
BYTES_PER_TOKEN = 16  # more than a word of most languages has
MIN_LINE_LIMIT_BYTES = 4096  # lines of a text file are never cut below this length
MAX_JSON_DOCUMENT_BYTES = 1 << 24  # a longer line of JSON is refused
HELDOUT_EVERY = 20  # one document in so many is held out ...
MAX_HELDOUT_TOKENS = 16_384  # ... until the held-out rows have this many tokens
DOCUMENTS_PER_READ = 64

_FORMAT_CURE = (
    'Give a text with one document a line, or JSON Lines with {"text": "…"} or '
    '{"tokens": [1, 2, 3]}.'
)


@dataclass(frozen=True, kw_only=True)
class DocumentIndex:
    """The documents of a file, as ranges of bytes.

    Attributes:
        path: the file.
        fingerprint: sha256 of the file.
        starts: where each document starts.
        ends: where each document ends.
        content: the content of a file that is not written yet; else None.
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

        Args:
            context: the most tokens of a row, from which the length of a line is limited.
            content: read this instead of the file.

        Raises:
            FeatureError: if the file cannot be read, or has a line of JSON that is too long.
        """
        is_json = path.suffix == JSON_LINES_SUFFIX
        max_bytes = max(MIN_LINE_LIMIT_BYTES, BYTES_PER_TOKEN * context)
        if is_json:
            max_bytes = MAX_JSON_DOCUMENT_BYTES
        digest = hashlib.sha256()
        starts = array("q")
        ends = array("q")
        with _open_text(path, content) as file:
            at = 0
            while line := file.readline(max_bytes):
                if len(line) == max_bytes and not line.endswith(b"\n"):
                    if is_json:
                        raise FeatureError(
                            f"{path.name}, document {len(starts) + 1}, is longer than "
                            f"{max_bytes:,} bytes.",
                            "Split it into several documents.",
                        )
                    line = line[: _cut_position(line)]
                    file.seek(at + len(line))
                if line.strip():
                    starts.append(at)
                    ends.append(at + len(line))
                digest.update(line)
                at += len(line)
        return cls(
            path=path, fingerprint=digest.hexdigest(), starts=starts, ends=ends, content=content
        )

    def rows(self, model: Backend, numbers: Sequence[int], context: int) -> Iterator[list[Row]]:
        """Yield the rows of each of these documents.

        A row has at most `context` token ids. Rows of one token are left out.

        Raises:
            FeatureError: if a document is not a text, or has ids that the model lacks.
        """
        with _open_text(self.path, self.content) as file:
            for number in numbers:
                start = self.starts[number]
                file.seek(start)
                ids = self._token_ids(model, number, file.read(self.ends[number] - start))
                rows = [
                    tuple(ids[first : first + context]) for first in range(0, len(ids), context)
                ]
                yield [row for row in rows if len(row) > 1]

    def _token_ids(self, model: Backend, number: int, content: bytes) -> Sequence[int]:
        location = f"{self.path.name}, document {number + 1},"
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            raise FeatureError(f"{location} is not UTF-8.", "Save the file as UTF-8.") from None
        if self.path.suffix != JSON_LINES_SUFFIX:
            return _encode(model, text.rstrip("\r\n"), location)
        try:
            value = loads(text, location)
        except StoreError as fault:
            raise FeatureError(
                f"{location} is not JSON.", _FORMAT_CURE, detail=fault.detail
            ) from None
        fields: dict[str, Any] = value if isinstance(value, dict) else {}
        if isinstance(fields.get("text"), str):
            return _encode(model, fields["text"], location)
        ids = fields.get("tokens")
        if not isinstance(ids, list) or not all(
            type(token) is int and 0 <= token < model.d_vocab for token in ids
        ):
            raise FeatureError(
                f"{location} has neither a text nor token ids from 0 to {model.d_vocab - 1}.",
                _FORMAT_CURE,
            )
        return ids


def _encode(model: Backend, text: str, location: str) -> list[int]:
    if model.tokenizer is None:
        raise FeatureError(
            f"{location} is text, and this model has no tokenizer.",
            'Give JSON Lines with token ids: {"tokens": [1, 2, 3]}.',
        )
    return model.tokenizer.encode(text)


def _cut_position(line: bytes) -> int:
    """Return where to cut a long line: before its last space, or else between two characters."""
    if (space := line.rfind(b" ")) > 0:
        return space
    end = len(line)
    while end > 1 and line[end - 1] & 0xC0 == 0x80:  # a byte inside a UTF-8 character
        end -= 1
    is_first_byte = end > 1 and line[end - 1] >= 0xC0
    return end - 1 if is_first_byte else end


def _open_text(path: Path, content: bytes | None) -> BinaryIO:
    if content is not None:
        return BytesIO(content)
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise FeatureError(f"There is no file {str(path)!r}.", _FORMAT_CURE) from None
    except OSError as fault:
        raise FeatureError(
            f"{str(path)!r} cannot be read: {fault.strerror or fault}.", _FORMAT_CURE
        ) from fault


@dataclass(frozen=True)
class Cursor:
    """The next document in the order of training.

    Attributes:
        epoch: complete passes over the text so far.
        document: documents of the present pass so far.
    """

    epoch: int = 0
    document: int = 0


class TrainingRows:
    """The rows of a text, some of them held out.

    Attributes:
        heldout: rows for the scores.
        documents: number of documents to train on.
        fingerprint: sha256 of the text.
    """

    def __init__(self, model: Backend, index: DocumentIndex, recipe: SAERecipe) -> None:
        """Hold some documents out.

        Raises:
            FeatureError: if there are fewer than two documents, or if the held-out documents have
                no two tokens together.
        """
        self._model = model
        self._index = index
        self._recipe = recipe
        self._require_two_documents()
        order = np.random.default_rng([recipe.seed]).permutation(len(index))
        self.fingerprint = index.fingerprint
        self.heldout: tuple[Row, ...] = ()
        n_heldout = 0
        for number in order[: max(1, len(index) // HELDOUT_EVERY)].tolist():
            for rows in index.rows(model, [number], recipe.context):
                self.heldout += tuple(rows)
            n_heldout += 1
            if sum(map(len, self.heldout)) >= MAX_HELDOUT_TOKENS:
                break
        self._training_documents = order[n_heldout:]
        self._heldout_rows = frozenset(self.heldout)
        self.documents = len(self._training_documents)
        self._order = lru_cache(maxsize=1)(self._shuffle_documents)
        if not self.heldout:
            raise FeatureError(
                f"The held-out documents of {index.path.name} have no two tokens together.",
                "Give longer documents.",
            )

    def take(self, at: Cursor, positions: int, skip: int) -> tuple[list[Row], Cursor]:
        """Return the next rows.

        Args:
            at: where to start.
            positions: the rows have at least this many positions after their first `skip`.

        Returns:
            The rows, and where to continue.

        Raises:
            FeatureError: if a whole pass over the text gives no row.
        """
        next_rows: list[Row] = []
        n_positions = 0
        cursor = at
        while n_positions < positions:
            order = self._order(cursor.epoch)
            numbers = order[cursor.document : cursor.document + DOCUMENTS_PER_READ].tolist()
            n_read = 0
            for rows in self._index.rows(self._model, numbers, self._recipe.context):
                usable = [row for row in rows if len(row) > skip and row not in self._heldout_rows]
                next_rows += usable
                n_positions += sum(len(row) - skip for row in usable)
                n_read += 1
                if n_positions >= positions:
                    break
            cursor = Cursor(cursor.epoch, cursor.document + n_read)
            if cursor.document >= len(order):
                cursor = Cursor(cursor.epoch + 1)
                if not next_rows and cursor.epoch > at.epoch + 1:
                    raise FeatureError(
                        f"{self._index.path.name} has nothing to train on: its documents are "
                        "single tokens, or all held out.",
                        "Give more and longer documents.",
                    )
        return next_rows, cursor

    def _require_two_documents(self) -> None:
        """Check that one document can be held out and another one is left."""
        index = self._index
        if len(index) >= 2:
            return
        # If the only document cannot be read, that is the better error.
        list(index.rows(self._model, range(len(index)), self._recipe.context))
        count = "one document" if len(index) else "no document"
        raise FeatureError(
            f"{index.path.name} has {count}, and one at least is held out.",
            "Give a text with a document a line.",
        )

    def _shuffle_documents(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([self._recipe.seed, epoch + 1])
        return rng.permutation(self._training_documents)


@dataclass(frozen=True)
class TrainingText:
    """A text to train on.

    Attributes:
        name: what the text is called.
        path: the file; None if there is none.
        content: the content that the run's `rows.jsonl` gets; None if there is a file.
    """

    name: str
    path: Path | None
    content: bytes | None = None

    def rows(self, model: Backend, recipe: SAERecipe) -> TrainingRows:
        """Return the rows of the text.

        Raises:
            FeatureError: if the text cannot be read or is too short.
        """
        path = self.path or Path(ROWS_FILE)
        return TrainingRows(model, DocumentIndex.of(path, recipe.context, self.content), recipe)


def resolve_text(model: Backend, text: TrainingInput) -> TrainingText:
    """Turn what a caller gave into a text.

    The name of a built-in task stands for `TEXT_PAIRS` of its pairs. Of tasks, both sides of all
    pairs are the documents, and repetitions are left out.

    Raises:
        FeatureError: if tasks and prompts are mixed, or if an item is not a prompt.
    """
    if isinstance(text, str) and text in BUILTIN:
        return resolve_text(model, load_task(text, model, pairs=TEXT_PAIRS))
    if isinstance(text, str | Path):
        path = Path(text).expanduser().absolute()
        return TrainingText(path.name, path)
    items = [text] if isinstance(text, Task) else list(text)
    tasks = [item for item in items if isinstance(item, Task)]
    if tasks and len(tasks) < len(items):
        raise FeatureError("Tasks and prompts were given together.", "Give one kind.")
    prompts: list[Prompt] = [item for item in items if not isinstance(item, Task)]
    for task in tasks:
        for pair in task.pairs:
            prompts += [pair.clean, pair.corrupted]
    rows = dict.fromkeys(_token_ids(model, prompt) for prompt in prompts)
    lines = "".join(dumps({"tokens": list(ids)}) + "\n" for ids in rows)
    name = "+".join(task.name for task in tasks) or "prompts"
    return TrainingText(name, None, lines.encode("ascii"))


def _token_ids(model: Backend, prompt: Prompt) -> Row:
    """Return the token ids of a prompt."""
    if isinstance(prompt, str):
        if model.tokenizer is None:
            raise FeatureError(
                "A prompt is text, and this model has no tokenizer.", "Give token ids."
            )
        return tuple(model.tokenizer.encode(prompt))
    if not all(type(token) is int for token in prompt):
        raise FeatureError(f"{prompt!r} is not a prompt.", "Give texts, or tuples of token ids.")
    return tuple(prompt)
