"""What the bundled model never sees in training: whole templates, and a tenth of the combinations.

A combination is what a behaviour depends on: the two names, two successive words of a list, the
year, or the two nouns. It is held out by a hash of its words, so that the choice needs no list and
does not change when the word lists grow.
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
"""The templates of each behaviour that are in no training sentence."""

_HELDOUT_ONE_IN = 10


def is_held_out(name: str, pair: MarkedPair) -> bool:
    """Return whether one of the pair's combinations belongs to the held-out tenth."""
    return any(
        _hash(name, combination) % _HELDOUT_ONE_IN == 0 for combination in _combinations(name, pair)
    )


def listed_words(pair: MarkedPair) -> list[str]:
    """Return the words of an induction pair's first list."""
    length = LIST_SHAPES[pair.template].length
    return [word.rstrip(",") for word in pair.clean.split()[1 : 1 + length]]


def _combinations(name: str, pair: MarkedPair) -> list[tuple[str, ...]]:
    """Return the combinations of words on which the behaviour depends."""
    if name == "induction":
        return list(pairwise(listed_words(pair)))
    if name == "ioi":
        return [tuple(sorted((_word(pair, "IO"), _word(pair, "S1"))))]
    if name == "greater_than":
        return [(_word(pair, "YY"),)]
    nouns = (_word(pair, label).removesuffix("s") for label in ("subject", "distractor"))
    return [tuple(nouns)]


def _word(pair: MarkedPair, label: str) -> str:
    """Return the word that a label names."""
    return pair.clean[: pair.marks[label]].rsplit(" ", 1)[-1]


def _hash(name: str, combination: tuple[str, ...]) -> int:
    """Return a number that depends on the words alone."""
    text = "|".join((name, *combination))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
