"""Induction: in 'lamp river stone apple tiger lamp river' the next word is ' stone', as it was the first time.

Olsson et al. 2022 (arXiv 2209.11895). A list of random nouns is said once and begun again, from any place in it; the
word A that ends the prompt was followed by B before. In the corrupted prompt A and another word C change places
in the first list, so that A is followed by C's successor D: what must move is which word came before which.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from discovery.tasks.builtin import words
from discovery.tasks.builtin.builtin_task import BuiltinTask, PairSampler, WordFilter
from discovery.tasks.pairs import MarkedPair


@dataclass(frozen=True)
class ListShape:
    """How a list is said and begun again.

    Attributes:
        opening: the word that announces the list.
        length: words in the list.
        repeated: words said again, A included.
        joint: what stands between the two.
    """

    opening: str
    length: int
    repeated: int
    joint: str = ""


LIST_SHAPES: dict[str, ListShape] = {
    "six_and_one": ListShape("List:", 6, 1),
    "six_and_two": ListShape("Words:", 6, 2),
    "seven_and_three": ListShape("List:", 7, 3),
    "eight_and_one": ListShape("Words:", 8, 1),
    "eight_and_two": ListShape("List:", 8, 2),
    "nine_and_two": ListShape("Words:", 9, 2),
    "six_then_two": ListShape("List:", 6, 2, ", then"),
    "seven_then_three": ListShape("Words:", 7, 3, ", then"),
    "ten_and_three": ListShape("List:", 10, 3),
}
"""Wording -> shape."""

NOUNS = words.OTHER_NOUNS + words.OBJECTS + words.THINGS
"""What the lists are made of."""


@dataclass(frozen=True)
class _InductionWords:
    """The nouns that may be used."""

    nouns: tuple[str, ...]

    def sample_pair(self, rng: random.Random, wording: str) -> MarkedPair:
        """One pair in the given wording."""
        shape = LIST_SHAPES[wording]
        listed = rng.sample(self.nouns, shape.length)
        begin = rng.randrange(shape.length - shape.repeated)
        a = begin + shape.repeated - 1
        c = rng.choice([i for i in range(shape.length - 1) if not (begin - 1 <= i <= a + 1)])
        swapped = list(listed)
        swapped[a], swapped[c] = swapped[c], swapped[a]
        again = f"{shape.joint} " + " ".join(listed[begin : a + 1])
        named = (("A1", a), ("B1", a + 1), ("C1", c), ("D1", c + 1))
        marks = {name: len(_announce_list(shape, listed[: i + 1])) for name, i in named}
        clean, corrupted = (
            _announce_list(shape, listed) + again,
            _announce_list(shape, swapped) + again,
        )
        return MarkedPair(
            clean, corrupted, f" {listed[a + 1]}", f" {listed[c + 1]}", wording, marks
        )


def _announce_list(shape: ListShape, listed: list[str]) -> str:
    """The list as it is announced."""
    return f"{shape.opening} {' '.join(listed)}"


def make_sampler(keep_words: WordFilter) -> PairSampler:
    """The drawing function over the words that may be used."""
    return _InductionWords(keep_words("nouns", NOUNS, 30)).sample_pair


TASK = BuiltinTask(
    name="induction",
    summary="Induction: go on with a random list said before; corrupted, the last word stood elsewhere in that list.",
    metric="logit_difference",
    default_pairs=240,
    templates=tuple(LIST_SHAPES),
    make_sampler=make_sampler,
)
