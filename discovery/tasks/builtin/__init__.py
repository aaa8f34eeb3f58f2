"""Behaviours that come with their own prompts: `BUILTIN` names them, `generate` makes pairs for a tokenizer.

    >>> sorted(BUILTIN)
    ['agreement', 'greater_than', 'induction', 'ioi']

Needs no torch: a tokenizer is anything with `encode` and `decode`.
"""

from __future__ import annotations

import random
from types import MappingProxyType

from discovery.errors import TaskError
from discovery.tasks.builtin import agreement, greater_than, induction, ioi
from discovery.tasks.builtin.builtin_task import BuiltinTask
from discovery.tasks.builtin.tokenizer_filter import TokenizerFilter
from discovery.tasks.pairs import PromptPair, Tokenizer

BUILTIN = MappingProxyType(
    {module.TASK.name: module.TASK for module in (ioi, induction, greater_than, agreement)}
)
"""Name -> task."""

__all__ = ["BUILTIN", "BuiltinTask", "generate"]


def generate(name: str, tokenizer: Tokenizer, pairs: int, seed: int) -> tuple[PromptPair, ...]:
    """Exactly `pairs` distinct pairs of a built-in behaviour, the wordings in turn.

    Args:
        name: a key of `BUILTIN`.
        tokenizer: decides which words and answers are used; the same seed gives other pairs with another tokenizer.
        pairs: how many; a pair and its reverse count as one.
        seed: of the random source.

    Raises:
        TaskError: an unknown name, a number of pairs below one, or a tokenizer that leaves too few words.
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
    rng, sieve = random.Random(seed), TokenizerFilter(tokenizer, name)
    draw = task.prepare(sieve.keep_words)
    return sieve.collect_pairs(
        lambda place: draw(rng, task.wordings[place % len(task.wordings)]), pairs
    )
