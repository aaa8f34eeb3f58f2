"""Behaviours that come with their own prompts.

`BUILTIN` holds them by name, and `generate` makes the pairs of one of them for a tokenizer.

    >>> sorted(BUILTIN)
    ['agreement', 'greater_than', 'induction', 'ioi']

This package needs no torch: a tokenizer is any object with the methods of `Tokenizer`.
"""

from __future__ import annotations

import random
from types import MappingProxyType

from discovery.errors import TaskError
from discovery.tasks.builtin import agreement, greater_than, induction, ioi
from discovery.tasks.builtin.builtin_task import BuiltinTask
from discovery.tasks.builtin.tokenizer_filter import TokenizerFilter
from discovery.tasks.pairs import MarkedPair, PromptPair, Tokenizer

_TASKS: tuple[BuiltinTask, ...] = (ioi.TASK, induction.TASK, greater_than.TASK, agreement.TASK)

BUILTIN = MappingProxyType({task.name: task for task in _TASKS})
"""The built-in tasks by name."""

__all__ = ["BUILTIN", "BuiltinTask", "generate"]


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
