"""Tasks: a behaviour as clean/corrupted prompt pairs, their answers, and how they were made.

from discovery import load_model, load_task
model = load_model("bundled")
task = load_task("ioi", model, pairs=240, seed=0)     # or a task file, or a list of pairs
task.discovery, task.heldout                          # tasks too
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from discovery.errors import TaskError
from discovery.sites import MetricName
from discovery.tasks.builtin import BUILTIN, generate
from discovery.tasks.encoder import PairEncoder, find_warnings
from discovery.tasks.pairs import PromptPair, Tokenizer
from discovery.tasks.split import split_pairs
from discovery.tasks.task import EncodedPair, Task
from discovery.tasks.task_file import pair_from_fields, read_task_file

__all__ = [
    "BUILTIN",
    "TEXT_PAIRS",
    "EncodedPair",
    "PromptPair",
    "Task",
    "Tokenizer",
    "load_task",
    "require_source",
]

TEXT_PAIRS = 2000  # of a built-in task whose prompts, both sides, serve as a text to train on


class TokenizedModel(Protocol):
    """What a task needs of a model: its tokenizer and its bounds."""

    @property
    def tokenizer(self) -> Tokenizer | None: ...
    @property
    def d_vocab(self) -> int: ...
    @property
    def n_logits(self) -> int: ...
    @property
    def n_ctx(self) -> int: ...


def require_source(source: str | Path) -> None:
    """See that a task is there; what is in it is read by `load_task`.

    Raises:
        TaskError: where it is neither a built-in task nor a file.
    """
    if not (isinstance(source, str) and source in BUILTIN) and not Path(source).is_file():
        raise TaskError(
            f"{str(source)!r} is neither a built-in task nor a file.",
            f"Built-in: {', '.join(BUILTIN)}; or give the path of a .jsonl file.",
        )


def load_task(
    source: str | Path | Sequence[PromptPair | Mapping[str, Any]],
    model: TokenizedModel,
    *,
    pairs: int | None = None,
    seed: int = 0,
) -> Task:
    """Load a behaviour for one model.

    Args:
        source: a built-in name (ioi, induction, greater_than, agreement), the path of a task file, or a list of pairs.
        model: whose tokenizer reads the text.
        pairs: how many; a built-in draws that many, a file or list gives a sample by `seed`. None: all, or the built-in's default.
        seed: draws the pairs and the split.

    Raises:
        TaskError: names the line or pair, what is wrong, and a cure.
    """
    if pairs is not None and pairs < 1:
        raise TaskError(f"pairs is {pairs}.", "Ask for at least 1 pair.")
    reader = PairEncoder(model.tokenizer, model.d_vocab, model.n_logits, model.n_ctx)
    metric: MetricName = "logit_difference"
    if isinstance(source, str) and source in BUILTIN:
        if model.tokenizer is None:
            raise TaskError(
                f"The built-in task {source!r} is text, and this model has no tokenizer.",
                "Use a task file with token ids.",
            )
        name, metric = source, BUILTIN[source].metric
        drawn = generate(source, model.tokenizer, pairs or BUILTIN[source].default_pairs, seed)
        written = {f"pair {n}": pair for n, pair in enumerate(drawn, start=1)}
    elif isinstance(source, str | Path):
        path = Path(source)
        require_source(source)
        name, written = path.stem, read_task_file(path)
    else:
        name = "inline"
        numbered = {f"pair {n}": pair for n, pair in enumerate(source, start=1)}
        written = {
            at: pair if isinstance(pair, PromptPair) else pair_from_fields(pair, at)
            for at, pair in numbered.items()
        }
        if not written:
            raise TaskError(
                "The list of pairs is empty.",
                "Give at least one pair: clean, corrupted, answer, wrong.",
            )
    encoded, warnings = reader.encode_all(written)
    if pairs is not None and pairs < len(encoded):
        encoded = tuple(
            encoded[i]
            for i in sorted(random.Random(f"pairs-{seed}").sample(range(len(encoded)), pairs))
        )
        warnings = tuple(find_warnings(encoded))
    splits, method = split_pairs(encoded, seed)
    if dropped := splits.count(None):
        warnings += (f"{dropped} pairs repeat or reverse another and are in neither split.",)
    return Task(name, encoded, splits, method, metric, seed, warnings)
