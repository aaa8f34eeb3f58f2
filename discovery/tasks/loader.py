"""Loading a task: read or generate prompt pairs, encode them for one model, and split them.

A task comes from a built-in behaviour, from a task file, or from a list of pairs. All three become
a mapping from a location ("pair 3", "line 3") to a `PromptPair`, so that every error can name the
pair it is about.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from discovery.errors import TaskError
from discovery.sites import MetricName
from discovery.tasks.builtin import BUILTIN, generate
from discovery.tasks.builtin.reference import DrawnReference
from discovery.tasks.encoder import PairEncoder, find_warnings
from discovery.tasks.pairs import PromptPair, ReferenceLine, TaskLine, Tokenizer
from discovery.tasks.reference import ReferencePrompt
from discovery.tasks.split import split_pairs
from discovery.tasks.task import EncodedPair, Task, list_corrupted
from discovery.tasks.task_file import line_from_fields, read_task_file

TEXT_PAIRS = 2000
"""How many pairs a built-in task generates when its prompts serve as a text to train an SAE on."""

TaskSource = str | Path | Sequence[TaskLine | Mapping[str, Any]]
"""A built-in name, the path of a task file, or a list of pairs."""


class TokenizedModel(Protocol):
    """The part of a model that a task depends on: its tokenizer and its limits."""

    @property
    def tokenizer(self) -> Tokenizer | None: ...
    @property
    def d_vocab(self) -> int: ...
    @property
    def n_logits(self) -> int: ...
    @property
    def n_ctx(self) -> int: ...


def load_task(
    source: TaskSource,
    model: TokenizedModel,
    *,
    pairs: int | None = None,
    seed: int = 0,
) -> Task:
    """Load a behaviour for one model.

    Args:
        source: the name of a built-in task (a key of `BUILTIN`), the path of a task file, or a list
            of pairs.
        model: the model whose tokenizer encodes the prompts.
        pairs: the number of pairs. A built-in task generates this many; from a file or a list, this
            many are sampled by `seed`. If None, all pairs are used, or the built-in default.
        seed: the seed that draws the pairs and the split.

    Raises:
        TaskError: if the source does not exist or a pair is not valid. The message names the line
            or the pair, what is wrong, and a fix.
    """
    if pairs is not None and pairs < 1:
        raise TaskError(f"pairs is {pairs}.", "Ask for at least 1 pair.")
    name, metric, lines = _read_source(source, model, pairs, seed)
    prompt_pairs = {at: line for at, line in lines.items() if isinstance(line, PromptPair)}
    if not prompt_pairs:
        raise TaskError(
            f"The task {name!r} has reference lines and no pairs.",
            "Add lines with clean, corrupted, answer and wrong.",
        )
    encoder = PairEncoder(model.tokenizer, model.d_vocab, model.n_logits, model.n_ctx)
    encoded, warnings = encoder.encode_all(prompt_pairs)
    reference = encoder.encode_reference(
        {at: line for at, line in lines.items() if isinstance(line, ReferenceLine)}, encoded
    )
    if pairs is not None and pairs < len(encoded):
        encoded = _sample(encoded, pairs, seed)
        warnings = tuple(find_warnings(encoded))
    splits, split_method = split_pairs(encoded, seed)
    if dropped := splits.count(None):
        warnings += (f"{dropped} pairs repeat or reverse another and are in neither split.",)
    task = Task(
        name=name,
        pairs=encoded,
        splits=splits,
        split_method=split_method,
        metric=metric,
        seed=seed,
        warnings=warnings,
    )
    return with_reference(task, name if is_builtin(source) else None, model.tokenizer, reference)


def with_reference(
    task: Task,
    builtin: str | None,
    tokenizer: Tokenizer | None,
    prompts: tuple[ReferencePrompt, ...] = (),
) -> Task:
    """Return the task with the source of its reference prompts.

    Args:
        task: the task.
        builtin: the name of the built-in task that draws fresh prompts; None for a user's task.
        tokenizer: the model's tokenizer, with which they are drawn.
        prompts: for a user's task, its reference lines; for a built-in one, the prompts that an
            earlier process drew.
    """
    if builtin is None or tokenizer is None:
        return replace(task, reference=list_corrupted(task, prompts))
    reference = DrawnReference(BUILTIN[builtin], tokenizer, task.seed, task.pairs, prompts)
    return replace(task, reference=reference)


def is_builtin(source: TaskSource) -> bool:
    """Whether a source is the name of a built-in task."""
    return isinstance(source, str) and source in BUILTIN


def require_source(source: str | Path) -> None:
    """Check that a task exists, without reading it. `load_task` checks its contents.

    Raises:
        TaskError: if `source` is neither the name of a built-in task nor an existing file.
    """
    if not is_builtin(source) and not Path(source).is_file():
        raise TaskError(
            f"{str(source)!r} is neither a built-in task nor a file.",
            f"Built-in: {', '.join(BUILTIN)}; or give the path of a .jsonl file.",
        )


def _read_source(
    source: TaskSource, model: TokenizedModel, pairs: int | None, seed: int
) -> tuple[str, MetricName, Mapping[str, TaskLine]]:
    """Return the name and the default metric of a task, and its lines by location."""
    if isinstance(source, str) and source in BUILTIN:
        return source, BUILTIN[source].metric, _generate_builtin(source, model, pairs, seed)
    if isinstance(source, str | Path):
        require_source(source)
        path = Path(source)
        return path.stem, "logit_difference", read_task_file(path)
    return "inline", "logit_difference", _read_inline(source)


def _generate_builtin(
    name: str, model: TokenizedModel, pairs: int | None, seed: int
) -> dict[str, PromptPair]:
    if model.tokenizer is None:
        raise TaskError(
            f"The built-in task {name!r} is text, and this model has no tokenizer.",
            "Use a task file with token ids.",
        )
    generated = generate(name, model.tokenizer, pairs or BUILTIN[name].default_pairs, seed)
    return {f"pair {number}": pair for number, pair in enumerate(generated, start=1)}


def _read_inline(source: Sequence[TaskLine | Mapping[str, Any]]) -> dict[str, TaskLine]:
    if not source:
        raise TaskError(
            "The list of pairs is empty.",
            "Give at least one pair: clean, corrupted, answer, wrong.",
        )
    lines: dict[str, TaskLine] = {}
    for number, item in enumerate(source, start=1):
        location = f"pair {number}"
        if isinstance(item, PromptPair | ReferenceLine):
            lines[location] = item
        else:
            lines[location] = line_from_fields(item, location)
    return lines


def _sample(encoded: Sequence[EncodedPair], pairs: int, seed: int) -> tuple[EncodedPair, ...]:
    """Draw `pairs` of the pairs without replacement, in their original order."""
    indices = random.Random(f"pairs-{seed}").sample(range(len(encoded)), pairs)
    return tuple(encoded[index] for index in sorted(indices))
