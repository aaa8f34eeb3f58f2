"""A task: prompt pairs as token ids, with their answers, their split, and where they came from.

A task is a value: the same pairs, metric and split give the same fingerprint, whatever file they came from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from discovery.sites import MetricName

SplitName = Literal["discovery", "heldout"]


@dataclass(frozen=True)
class EncodedPair:
    """One prompt pair in token ids.

    Attributes:
        clean, corrupted: token ids of the two sides; equally many.
        answer, wrong: token ids; one of several where the task gives sets.
        template: which wording it comes from ("" where the task names none).
        labels: label -> position, counted from 0.
    """

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answer: tuple[int, ...]
    wrong: tuple[int, ...]
    template: str = ""
    labels: Mapping[str, int] = field(default_factory=dict)

    @property
    def key(self) -> tuple[object, ...]:
        """The same for a pair and its reverse, so that no pair is in both splits."""
        sides = sorted(
            [(self.clean, tuple(sorted(self.answer))), (self.corrupted, tuple(sorted(self.wrong)))]
        )
        return tuple(sides)

    @property
    def first_difference(self) -> int:
        """The first position at which the two sides differ; everything before it is equal in a causal model."""
        return next(
            (i for i, (a, b) in enumerate(zip(self.clean, self.corrupted, strict=True)) if a != b),
            len(self.clean),
        )


@dataclass(frozen=True)
class Task:
    """Prompt pairs that show one behaviour.

    Attributes:
        name: built-in name, stem of the task file, or "inline".
        pairs: every pair, in order.
        splits: for each pair, which split it is in; None for a repeat or the reverse of another pair, which is in neither.
        split_method: how the pairs were divided, in words.
        metric: the metric used unless a caller names another.
        seed: what drew the pairs and the split.
        warnings: what the lint found that is not an error.
    """

    name: str
    pairs: tuple[EncodedPair, ...]
    splits: tuple[SplitName | None, ...]
    split_method: str
    metric: MetricName = "logit_difference"
    seed: int = 0
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def discovery(self) -> Task:
        """The pairs that select a circuit."""
        return self._pairs_of_split("discovery")

    @property
    def heldout(self) -> Task:
        """The pairs that a frozen circuit is tested on."""
        return self._pairs_of_split("heldout")

    def _pairs_of_split(self, name: SplitName) -> Task:
        kept = tuple(
            pair for pair, split in zip(self.pairs, self.splits, strict=True) if split == name
        )
        return replace(self, pairs=kept, splits=(name,) * len(kept))

    @property
    def fingerprint(self) -> str:
        """sha256 of the pairs, in order (not of the name or the split)."""
        rows = [
            [p.clean, p.corrupted, p.answer, p.wrong, p.template, sorted(p.labels.items())]
            for p in self.pairs
        ]
        return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()

    @property
    def has_one_length(self) -> bool:
        """Whether all prompts have the same number of tokens, so that positions count from 0."""
        return len({len(pair.clean) for pair in self.pairs}) == 1
