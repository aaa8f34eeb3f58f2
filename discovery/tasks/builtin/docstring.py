'''Docstrings: after `def port(self, load, size, files, last):` document ' files' after ' size'.

Heimersheim and Janiak 2023, "A circuit for Python docstrings in a 4-layer attention-only
transformer". A docstring has described the first arguments of a function, and the next `:param`
must name the argument that follows the last described one in the definition:

    def port(self, load, size, files, last):
        """The oil column piece

        :param load: crime population
        :param size: unit dark
        :param

Letters name the arguments as there: B is the last described argument and C the next one, the
answer. The wrong answers are all other arguments, as in the paper. The corrupted prompt exchanges C
and a later argument D in the definition, so that D follows B. (The paper replaces the arguments by
other words; then the answer is not in the corrupted prompt at all.) A docstring begins with "The",
because a random word that follows the quotes without a space has another number of tokens.
'''

from __future__ import annotations

import random
from dataclasses import dataclass

from discovery.tasks.builtin import words
from discovery.tasks.builtin.builtin_task import BuiltinTask, PairSampler, WordFilter
from discovery.tasks.pairs import MarkedPair


@dataclass(frozen=True)
class FunctionShape:
    """The form of a function and its unfinished docstring.

    Attributes:
        arguments: the number of arguments after `self`.
        described: how many of them the docstring has described.
    """

    arguments: int
    described: int


SHAPES: dict[str, FunctionShape] = {
    "four_after_two": FunctionShape(4, 2),
    "four_after_one": FunctionShape(4, 1),
    "five_after_one": FunctionShape(5, 1),
    "five_after_two": FunctionShape(5, 2),
    "five_after_three": FunctionShape(5, 3),
    "six_after_two": FunctionShape(6, 2),
    "six_after_three": FunctionShape(6, 3),
    "six_after_four": FunctionShape(6, 4),
}
"""The shape of each template. The first is that of the paper."""

SUMMARY_WORDS = 3
"""The number of nouns in the first line of a docstring."""

DESCRIPTION_WORDS = 2
"""The number of nouns that describe one argument."""


@dataclass(frozen=True)
class _DocstringWords:
    """The words that may be used: argument names, and nouns for everything else."""

    arguments: tuple[str, ...]
    nouns: tuple[str, ...]

    def sample_pair(self, rng: random.Random, template: str) -> MarkedPair:
        """Draw one pair of the given template."""
        shape = SHAPES[template]
        arguments = rng.sample(self.arguments, shape.arguments)
        c = shape.described
        d = rng.randrange(c + 1, shape.arguments)
        swapped = list(arguments)
        swapped[c], swapped[d] = swapped[d], swapped[c]
        described = arguments[:c]
        nouns = rng.sample(self.nouns, 1 + SUMMARY_WORDS + DESCRIPTION_WORDS * c)
        docstring = _docstring(described, nouns[1:])
        opening = f"def {nouns[0]}(self"
        b_doc = len(_define(opening, arguments)) + docstring.index(f":param {described[-1]}:")
        indices = {"B_def": c - 1, "C_def": c, "D_def": d}
        return MarkedPair(
            clean=_define(opening, arguments) + docstring,
            corrupted=_define(opening, swapped) + docstring,
            answer=f" {arguments[c]}",
            wrong=tuple(f" {name}" for name in arguments if name != arguments[c]),
            template=template,
            marks={
                **{
                    label: len(", ".join([opening, *arguments[: index + 1]]))
                    for label, index in indices.items()
                },
                "B_doc": b_doc + len(f":param {described[-1]}"),
            },
        )


def _define(opening: str, arguments: list[str]) -> str:
    """Return the line that defines the function."""
    return f"{', '.join([opening, *arguments])}):\n"


def _docstring(described: list[str], nouns: list[str]) -> str:
    """Return the docstring as far as it is written."""
    lines = [f'    """The {" ".join(nouns[:SUMMARY_WORDS])}', ""]
    for number, name in enumerate(described):
        first = SUMMARY_WORDS + DESCRIPTION_WORDS * number
        lines.append(f"    :param {name}: {' '.join(nouns[first : first + DESCRIPTION_WORDS])}")
    return "\n".join([*lines, "    :param"])


def make_sampler(keep_words: WordFilter) -> PairSampler:
    """Return the function that draws a pair from the words that may be used."""
    return _DocstringWords(
        arguments=keep_words("argument names", words.ARGUMENTS, 20),
        nouns=keep_words("nouns", words.OTHER_NOUNS, 20),
    ).sample_pair


TASK = BuiltinTask(
    name="docstring",
    summary=(
        "Docstrings: describe the next argument of a Python function. "
        "In the corrupted prompt, another argument comes next."
    ),
    metric="logit_difference",
    default_pairs=240,
    templates=tuple(SHAPES),
    make_sampler=make_sampler,
)
