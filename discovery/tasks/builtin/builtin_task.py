"""The parts of a built-in behaviour: its templates, and how a prompt pair is made from one of them.

A behaviour draws `MarkedPair`s, in which labels are still character positions. Its caller decides
which words may be used (`WordFilter`). So the same behaviour serves a task, whose words must be one
token each for the model's tokenizer, and the corpus that the bundled model is trained on, which may
use every word.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

from discovery.sites import MetricName
from discovery.tasks.pairs import MarkedPair

WordFilter = Callable[[str, Sequence[str], int], tuple[str, ...]]
"""(kind, words, minimum) -> the words that may be used. Raises if fewer than `minimum` remain."""

PairSampler = Callable[[random.Random, str], MarkedPair]
"""(random source, template name) -> one pair made from that template."""


@dataclass(frozen=True, kw_only=True)
class BuiltinTask:
    """A behaviour that comes with its own prompts.

    Attributes:
        name: the name that a user types.
        summary: one sentence that says what the model must do and what the corrupted prompt
            changes.
        metric: the metric that is used if the caller names no other.
        default_pairs: the number of pairs if the caller asks for no number.
        templates: the names of its templates. Each pair names the one it was made from.
        make_sampler: a function that takes a word filter and returns the function that draws a
            pair.
        roles: the ways in which a corrupted prompt can have the roles that the corruption
            exchanges. The reference prompts of mean ablation have as many of each, so that their
            mean says nothing about the answer. A task whose corruption exchanges no roles has one.
    """

    name: str
    summary: str
    metric: MetricName
    default_pairs: int
    templates: tuple[str, ...]
    make_sampler: Callable[[WordFilter], PairSampler]
    roles: tuple[str, ...] = ("",)


def fill(pattern: str, values: Mapping[str, str]) -> tuple[str, dict[str, int]]:
    """Fill in the {fields} of a pattern.

    Returns:
        The text, and for each field the index just after the last character of its first value.
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
    """Return the index just after the word or punctuation mark that follows index `end`."""
    following = re.compile(r"\s*(\w+|[^\w\s])").match(text, end)
    if following is None:
        raise ValueError(f"nothing follows index {end} of {text!r}")
    return following.end()
