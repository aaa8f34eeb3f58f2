"""Induction: in 'lamp river stone apple tiger lamp river' the next word is ' stone', as before.

Olsson et al. 2022 (arXiv 2209.11895). A prompt lists random nouns once and repeats a part of the
list, from any position. Its last word A was followed by B in the first list. In the corrupted
prompt, A and another word C change places in the first list, so that A is followed by the word D
that came after C. The same words occur on both sides; only the order of the first list differs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from discovery.tasks.builtin import words
from discovery.tasks.builtin.builtin_task import BuiltinTask, PairSampler, WordFilter
from discovery.tasks.pairs import MarkedPair


@dataclass(frozen=True)
class ListShape:
    """The form of a list and of its repetition.

    Attributes:
        opening: the word that announces the list.
        length: the number of words in the list.
        repeated: the number of words that are repeated, A included.
        joint: the text between the list and its repetition.
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
"""The shape of each template."""

A_COMES_FIRST = "A before C"
C_COMES_FIRST = "C before A"

NOUNS = words.OTHER_NOUNS + words.OBJECTS + words.THINGS
"""The words that the lists are made of."""


@dataclass(frozen=True)
class _InductionWords:
    """The nouns that may be used in a list."""

    nouns: tuple[str, ...]

    def sample_pair(self, rng: random.Random, template: str) -> MarkedPair:
        """Draw one pair of the given template."""
        shape = LIST_SHAPES[template]
        nouns = rng.sample(self.nouns, shape.length)
        begin = rng.randrange(shape.length - shape.repeated)
        # A ends the repeated part. C must lie outside it and not next to it.
        a = begin + shape.repeated - 1
        c = rng.choice([i for i in range(shape.length - 1) if not (begin - 1 <= i <= a + 1)])
        swapped = list(nouns)
        swapped[a], swapped[c] = swapped[c], swapped[a]
        repetition = f"{shape.joint} " + " ".join(nouns[begin : a + 1])
        indices = {"A1": a, "B1": a + 1, "C1": c, "D1": c + 1}
        return MarkedPair(
            clean=_announce(shape, nouns) + repetition,
            corrupted=_announce(shape, swapped) + repetition,
            answer=f" {nouns[a + 1]}",
            wrong=f" {nouns[c + 1]}",
            template=template,
            marks={
                label: len(_announce(shape, nouns[: index + 1])) for label, index in indices.items()
            },
            role=C_COMES_FIRST if a < c else A_COMES_FIRST,
        )


def _announce(shape: ListShape, nouns: list[str]) -> str:
    """Return the first list with the word that announces it."""
    return f"{shape.opening} {' '.join(nouns)}"


def make_sampler(keep_words: WordFilter) -> PairSampler:
    """Return the function that draws a pair from the words that may be used."""
    return _InductionWords(keep_words("nouns", NOUNS, 30)).sample_pair


TASK = BuiltinTask(
    name="induction",
    summary=(
        "Induction: continue a random list that was given before. "
        "In the corrupted prompt, the last word was elsewhere in that list."
    ),
    metric="logit_difference",
    default_pairs=240,
    templates=tuple(LIST_SHAPES),
    make_sampler=make_sampler,
    roles=(A_COMES_FIRST, C_COMES_FIRST),
)
