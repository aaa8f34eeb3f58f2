"""What the bundled model never sees in training: whole wordings, and one combination of words in ten.

A combination is what a behaviour turns on: the two names, two words in a row, the year, the two nouns. It is held out
by a hash of its words, so that the choice needs no list and does not change when the word lists grow.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise

from discovery.tasks.builtin.induction import LIST_SHAPES
from discovery.tasks.pairs import MarkedPair

HELDOUT_TEMPLATES: dict[str, frozenset[str]] = {
    "ioi": frozenset({"while_lunch", "lunch_today"}),
    "induction": frozenset({"seven_then_three", "nine_and_two"}),
    "greater_than": frozenset({"began_until"}),
    "agreement": frozenset({"outside_that_saw"}),
}
"""Behaviour -> wordings that are in no training sentence."""

_HELDOUT_ONE_IN = 10


def is_held_out(name: str, pair: MarkedPair) -> bool:
    """Whether a combination of this pair (either side) belongs to the held-out tenth."""
    return any(
        _hash(name, combination) % _HELDOUT_ONE_IN == 0 for combination in _combinations(name, pair)
    )


def listed_words(pair: MarkedPair) -> list[str]:
    """The words of an induction pair's first list."""
    return [
        word.rstrip(",") for word in pair.clean.split()[1 : 1 + LIST_SHAPES[pair.template].length]
    ]


def _combinations(name: str, pair: MarkedPair) -> list[tuple[str, ...]]:
    """The combinations of words that the behaviour turns on."""
    if name == "induction":
        listed = listed_words(pair)
        return list(pairwise(listed))
    if name == "ioi":
        return [tuple(sorted((_word(pair, "IO"), _word(pair, "S1"))))]
    if name == "greater_than":
        return [(_word(pair, "YY"),)]
    singular = (
        _word(pair, "subject").removesuffix("s"),
        _word(pair, "distractor").removesuffix("s"),
    )
    return [singular]


def _word(pair: MarkedPair, label: str) -> str:
    """The word that a label names."""
    return pair.clean[: pair.marks[label]].rsplit(" ", 1)[-1]


def _hash(name: str, combination: tuple[str, ...]) -> int:
    """A number that depends on the words alone."""
    return int.from_bytes(
        hashlib.sha256("|".join((name, *combination)).encode()).digest()[:8], "big"
    )
