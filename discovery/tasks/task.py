"""The task as a value: prompt pairs as token ids, with their answers, their split and their origin.

The same pairs in the same order have the same fingerprint, whatever file they came from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from discovery.sites import MetricName
from discovery.tasks.reference import ListedReference, ReferencePrompt, ReferenceSource

PAIRS_DESCRIPTION = "corrupted prompts of both splits, the pair itself left out"
"""How records name the origin of a user's reference prompts."""

OWN_DESCRIPTION = "corrupted prompts of the same split, the pair itself left out"
"""How records of version 1 name the origin of reference prompts."""

SplitName = Literal["discovery", "heldout"]
"""The pairs that select a circuit, and the pairs that test it."""


@dataclass(frozen=True, kw_only=True)
class EncodedPair:
    """One prompt pair as token ids.

    Attributes:
        clean: the token ids of the clean prompt.
        corrupted: the token ids of the corrupted prompt, as many as in `clean`.
        answer: the token ids of the right answer. There are several if the task gives a set.
        wrong: the token ids of the wrong answer, likewise.
        template: the name of the template that the pair comes from, or "" if the task names none.
        labels: the position of each label, counted from 0.
    """

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answer: tuple[int, ...]
    wrong: tuple[int, ...]
    template: str = ""
    labels: Mapping[str, int] = field(default_factory=dict)

    @property
    def key(self) -> tuple[object, ...]:
        """A key that a pair shares with its reverse, so that no pair gets into both splits."""
        sides = [
            (self.clean, tuple(sorted(self.answer))),
            (self.corrupted, tuple(sorted(self.wrong))),
        ]
        return tuple(sorted(sides))

    @property
    def as_reference(self) -> ReferencePrompt:
        """The corrupted prompt, as one that enters the means of mean ablation."""
        return ReferencePrompt(
            tokens=self.corrupted, template=self.template, labels=dict(self.labels)
        )

    @property
    def first_difference(self) -> int:
        """The first position at which the two sides differ.

        A causal model computes the same values on both sides at every earlier position.
        """
        for position, (clean, corrupted) in enumerate(zip(self.clean, self.corrupted, strict=True)):
            if clean != corrupted:
                return position
        return len(self.clean)


@dataclass(frozen=True, kw_only=True, repr=False)
class Task:
    """Prompt pairs that show one behaviour.

    Attributes:
        name: the built-in name, the stem of the task file, or "inline".
        pairs: every pair, in order.
        splits: the split of each pair. It is None for a pair that repeats or reverses another one.
        split_method: how the pairs were divided, in words.
        metric: the metric that is used if the caller names no other.
        seed: the seed that drew the pairs and the split.
        warnings: what is suspicious about the pairs but allowed.
        reference: where the prompts come from over which mean ablation takes its means. None
            means the corrupted prompts of both splits; see `reference_source`.
    """

    name: str
    pairs: tuple[EncodedPair, ...]
    splits: tuple[SplitName | None, ...]
    split_method: str
    metric: MetricName = "logit_difference"
    seed: int = 0
    warnings: tuple[str, ...] = ()
    reference: ReferenceSource | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        """Return one line; the pairs themselves are in `pairs`."""
        templates = len({pair.template for pair in self.pairs})
        named = f"{templates} template{'s' * (templates != 1)}"
        discovery, heldout = (self.splits.count(name) for name in get_args(SplitName))
        return (
            f"<Task {self.name!r}: {len(self)} pairs of {named} ({discovery} discovery, {heldout} "
            f"held-out), {self.metric}, seed {self.seed}, fingerprint {self.fingerprint[:12]}>"
        )

    @property
    def discovery(self) -> Task:
        """The pairs that select a circuit."""
        return self._pairs_of_split("discovery")

    @property
    def heldout(self) -> Task:
        """The pairs that test a circuit after it is frozen."""
        return self._pairs_of_split("heldout")

    def _pairs_of_split(self, name: SplitName) -> Task:
        pairs = tuple(
            pair for pair, split in zip(self.pairs, self.splits, strict=True) if split == name
        )
        return replace(
            self, pairs=pairs, splits=(name,) * len(pairs), reference=self.reference_source
        )

    @property
    def reference_source(self) -> ReferenceSource:
        """Where the prompts come from over which mean ablation takes its means.

        Both splits have the same one. A task without splits uses all of its pairs.
        """
        return self.reference or list_corrupted(self)

    @property
    def fingerprint(self) -> str:
        """The sha256 of the pairs in their order. The name and the split are not part of it."""
        rows = [
            [p.clean, p.corrupted, p.answer, p.wrong, p.template, sorted(p.labels.items())]
            for p in self.pairs
        ]
        return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()

    @property
    def has_one_length(self) -> bool:
        """Whether all prompts have the same number of tokens, so that positions count from 0."""
        return len({len(pair.clean) for pair in self.pairs}) == 1


def list_corrupted(
    task: Task, more: tuple[ReferencePrompt, ...] = (), description: str = PAIRS_DESCRIPTION
) -> ListedReference:
    """Return the reference prompts of a user's task.

    They are the corrupted prompts of both splits, one for each pair.

    Args:
        task: the task. If none of its pairs is in a split, all of them are used.
        more: the prompts of the lines that only serve the means.
        description: how records name the origin of the prompts.
    """
    pairs = [pair for pair, split in zip(task.pairs, task.splits, strict=True) if split is not None]
    own = tuple(pair.as_reference for pair in pairs or task.pairs)
    if more:
        description = f"{description}, and {len(more)} reference lines"
    return ListedReference(prompts=own + more, description=description)


def list_own_corrupted(task: Task) -> ListedReference:
    """Return the reference prompts under version 1 of the rules: those of the measured pairs."""
    prompts = tuple(pair.as_reference for pair in task.pairs)
    return ListedReference(prompts=prompts, description=OWN_DESCRIPTION)
