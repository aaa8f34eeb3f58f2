"""Reference prompts: the corrupted prompts over which mean ablation takes its means.

docs/definitions.md, "Ablations", has the rule. A built-in task draws fresh prompts for this purpose
(`tasks.builtin.reference`). For a user's task they are the corrupted prompts of both splits, and
the lines of the task file with `"use": "reference"`. A source draws its prompts only when they are
first asked for, because most measurements need none.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

REFERENCE_PROMPTS = 52
"""How many prompts of each template and token count a built-in task draws at first.

It is a multiple of 4, so that each half has as many prompts of each of two roles.
"""

MAX_REFERENCE_PROMPTS = 8 * REFERENCE_PROMPTS
"""The most prompts of each template and token count that are drawn if halves do not agree."""

HALVES = (0, 1)
"""The numbers of the two halves into which reference prompts are divided."""


@dataclass(frozen=True, kw_only=True)
class ReferencePrompt:
    """One corrupted prompt that enters the means of mean ablation.

    Attributes:
        tokens: the token ids.
        template: the name of its template; "" if the task names none.
        labels: the position of each label, counted from 0.
        role: which way round the prompt has the roles that the corruption exchanges; "" if the
            task does not say. Halves are balanced over the roles.
    """

    tokens: tuple[int, ...]
    template: str = ""
    labels: Mapping[str, int] = field(default_factory=dict)
    role: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        """A key that equal prompts share, whatever their role is called."""
        return self.template, self.tokens, tuple(sorted(self.labels.items()))


class ReferenceSource(Protocol):
    """Where the reference prompts of a task come from."""

    @property
    def description(self) -> str:
        """The origin of the prompts in words, as records name it."""
        ...

    @property
    def per_group(self) -> int:
        """How many prompts of each template and token count are used at first."""
        ...

    @property
    def builtin(self) -> str | None:
        """The built-in task that draws the prompts; None if there are no more than given."""
        ...

    def draw(self, per_group: int) -> tuple[ReferencePrompt, ...]:
        """Return the prompts.

        The prompts for a smaller number are among those for a larger one, in the same order.

        Args:
            per_group: how many prompts of each template and token count to draw. A source of
                listed prompts returns all of them.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ListedReference:
    """Reference prompts that are given: a user's task has no others.

    Attributes:
        prompts: the prompts.
        description: the origin of the prompts in words, as records name it.
    """

    prompts: tuple[ReferencePrompt, ...]
    description: str

    @property
    def per_group(self) -> int:
        """The number of prompts of the largest group."""
        return largest_group(self.prompts)

    @property
    def builtin(self) -> str | None:
        """No task draws these prompts."""
        return None

    @cached_property
    def _shuffled(self) -> tuple[ReferencePrompt, ...]:
        """The prompts in a random order that does not depend on the order in which they came.

        Halves then do not follow the order of a file, and a run that reads its prompts back has the
        same halves.
        """
        order = sorted(self.prompts, key=lambda prompt: str(prompt.key))
        random.Random("reference").shuffle(order)
        return tuple(order)

    def draw(self, per_group: int) -> tuple[ReferencePrompt, ...]:
        """Return all prompts, in an order that is random and always the same."""
        return self._shuffled


def largest_group(prompts: Sequence[ReferencePrompt]) -> int:
    """Return how many prompts share a template and a token count, at most."""
    sizes: dict[tuple[str, int], int] = defaultdict(int)
    for prompt in prompts:
        sizes[prompt.template, len(prompt.tokens)] += 1
    return max(sizes.values(), default=0)


def divide_into_halves(prompts: Sequence[ReferencePrompt]) -> tuple[int, ...]:
    """Return for each prompt the half that it belongs to, 0 or 1.

    The prompts of a template, token count and role belong to the two halves in turn. A prompt's
    half therefore stays the same if more prompts are drawn.
    """
    counts: dict[tuple[str, int, str], int] = defaultdict(int)
    halves = []
    for prompt in prompts:
        group = (prompt.template, len(prompt.tokens), prompt.role)
        halves.append(counts[group] % 2)
        counts[group] += 1
    return tuple(halves)
