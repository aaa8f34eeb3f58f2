"""What a built-in behaviour is: its wordings, and how one of them is told.

A behaviour draws `MarkedPair`s, texts whose labels are still places in the text. It asks its caller which words
may be used (`Keep`), so that one source serves both a task, whose words a tokenizer must render as one
token each, and the corpus that the bundled model is trained on, whose words are all allowed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

from discovery.tasks.pairs import MarkedPair

WordFilter = Callable[[str, Sequence[str], int], tuple[str, ...]]
"""(kind, words, least) -> the words that may be used; raises where fewer than `least` are left."""

PairSampler = Callable[[random.Random, str], MarkedPair]
"""(random source, wording) -> one pair told in that wording."""


@dataclass(frozen=True)
class BuiltinTask:
    """A behaviour that ships with its own prompts.

    Attributes:
        name: what a user types.
        summary: one sentence: what the model must do, and what the corrupted prompt changes.
        metric: the metric that suits it when none is asked for.
        default_pairs: how many pairs a task has when no number is asked for.
        wordings: the names of its templates, each a `template` of the pairs.
        prepare: given the words that may be used, the function that draws a pair.
    """

    name: str
    summary: str
    metric: str
    default_pairs: int
    templates: tuple[str, ...]
    make_sampler: Callable[[WordFilter], PairSampler]


def fill(pattern: str, values: Mapping[str, str]) -> tuple[str, dict[str, int]]:
    """A pattern with its {fields} filled in, and where each field's (first) value ends.

    Returns:
        the text, and field -> index one past the last character of its value.
    """
    text = ""
    ends: dict[str, int] = {}
    for literal, field, _, _ in Formatter().parse(pattern):
        text += literal
        if field is not None:
            text += values[field]
            ends.setdefault(field, len(text))
    return text, ends


def next_word(text: str, end: int) -> int:
    """Where the word or punctuation mark that follows position `end` ends."""
    found = re.compile(r"\s*(\w+|[^\w\s])").match(text, end)
    if found is None:
        raise ValueError(f"nothing follows position {end} of {text!r}")
    return found.end()
