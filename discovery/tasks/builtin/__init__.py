"""Behaviours that come with their own prompts.

`BUILTIN` holds them by name, and `generate` makes the pairs of one of them for a tokenizer.

    >>> sorted(BUILTIN)
    ['agreement', 'capitals', 'docstring', 'gender', 'greater_than', 'induction', 'ioi']

This package needs no torch: a tokenizer is any object with the methods of `Tokenizer`.
"""

from __future__ import annotations

import random
from types import MappingProxyType

from discovery.errors import TaskError
from discovery.tasks.builtin import (
    agreement,
    capitals,
    docstring,
    gender,
    greater_than,
    induction,
    ioi,
)
from discovery.tasks.builtin.builtin_task import BuiltinTask
from discovery.tasks.builtin.tokenizer_filter import TokenizerFilter
from discovery.tasks.pairs import MarkedPair, PromptPair, Tokenizer

_TASKS: tuple[BuiltinTask, ...] = (
    ioi.TASK,
    induction.TASK,
    greater_than.TASK,
    agreement.TASK,
    docstring.TASK,
    gender.TASK,
    capitals.TASK,
)

BUILTIN = MappingProxyType({task.name: task for task in _TASKS})
"""The built-in tasks by name."""

BUNDLED_TASKS = (ioi.TASK.name, induction.TASK.name, greater_than.TASK.name, agreement.TASK.name)
"""The built-in tasks that the bundled model was trained on; it lacks the words of the others."""

__all__ = ["BUILTIN", "BUNDLED_TASKS", "BuiltinTask", "find_misfits", "generate"]


def generate(name: str, tokenizer: Tokenizer, pairs: int, seed: int) -> tuple[PromptPair, ...]:
    """Make distinct pairs of a built-in behaviour, from each of its templates in turn.

    Args:
        name: a key of `BUILTIN`.
        tokenizer: the tokenizer that decides which words and answers can be used. With another
            tokenizer, the same seed gives other pairs.
        pairs: the exact number of pairs. A pair and its reverse count as one.
        seed: the seed of the random source.

    Raises:
        TaskError: if the name is unknown, if `pairs` is below one, or if the tokenizer leaves too
            few words.
    """
    if name not in BUILTIN:
        raise TaskError(
            f"There is no built-in task {name!r}.",
            f"Choose one of {', '.join(BUILTIN)}, or give the path of a task file.",
        )
    task = BUILTIN[name]
    if pairs < 1:
        raise TaskError(
            f"A task needs at least one pair; {pairs} were asked for.",
            f"Ask for 1 or more (default {task.default_pairs}).",
        )
    rng = random.Random(seed)
    tokenizer_filter = TokenizerFilter(tokenizer, name)
    sample_pair = task.make_sampler(tokenizer_filter.keep_words)

    def propose(index: int) -> MarkedPair:
        return sample_pair(rng, task.templates[index % len(task.templates)])

    return tokenizer_filter.collect_pairs(propose, pairs)


def find_misfits(tokenizer: Tokenizer | None) -> dict[str, str | None]:
    """Return for each built-in task why it does not suit a model; None for a task that does.

    One pair of each template is drawn. Whether the model does the task is another question, which
    `check_task` answers.

    Args:
        tokenizer: the model's tokenizer, or None if it has none.
    """
    return {name: _find_misfit(task, tokenizer) for name, task in BUILTIN.items()}


def _find_misfit(task: BuiltinTask, tokenizer: Tokenizer | None) -> str | None:
    if tokenizer is None:
        return f"The task {task.name} is text, and this model has no tokenizer."
    try:
        generate(task.name, tokenizer, len(task.templates), 0)
    except TaskError as fault:
        return fault.cause
    return None
