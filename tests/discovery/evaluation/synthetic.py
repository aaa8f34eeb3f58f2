"""An f that is a plain function of the set.

It is what evaluation and search see of a model, with the value of every set known.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from discovery.errors import BudgetError
from discovery.methods.ablation import NodeSet
from discovery.sites import Node


class SyntheticFaithfulness:
    """Replaces a `Faithfulness` in tests.

    Attributes:
        everything: the universe.
        value: gives f of a set.
        n_pairs: the number of pairs it claims to have.
        is_defined: whether f means anything.
        budget: how many sets may be measured; each counts once. A request that goes beyond the
            budget measures nothing, and `refused` counts it.
        measured: f of every set that was asked for.
    """

    def __init__(
        self,
        everything: Iterable[Node],
        value: Callable[[NodeSet], float],
        *,
        n_pairs: int = 8,
        is_defined: bool = True,
        budget: int | None = None,
    ) -> None:
        self.everything: NodeSet = frozenset(everything)
        self.value = value
        self.n_pairs = n_pairs
        self.is_defined = is_defined
        self.budget = budget
        self.measured: dict[NodeSet, float] = {}
        self.refused = 0

    def __call__(
        self, sets: Sequence[NodeSet], label: str = "ablation", pairs: int | None = None
    ) -> Tensor:
        new_sets = {frozenset(kept) for kept in sets} - self.measured.keys()
        if self.budget is not None and len(self.measured) + len(new_sets) > self.budget:
            self.refused += 1
            raise BudgetError(f"{label} needs {len(new_sets)} sets.", "Raise the budget.")
        self.measured |= {kept: float(self.value(kept)) for kept in new_sets}
        return torch.tensor([self.measured[frozenset(kept)] for kept in sets], dtype=torch.float64)

    def screen(self, sets: Sequence[NodeSet], label: str) -> Tensor:
        """Return f of each set: an exact value costs nothing more."""
        return self(sets, label)

    def differences(
        self,
        first: Sequence[NodeSet],
        second: Sequence[NodeSet],
        bounds: Sequence[float],
        label: str,
    ) -> Tensor:
        """Return f(first) − f(second) for each pair of sets."""
        values = self([*first, *second], label)
        return values[: len(first)] - values[len(first) :]


def subsets(universe: Iterable[Node]) -> Iterator[NodeSet]:
    """Yield every subset of a universe, smaller ones first."""
    members = sorted(universe)
    for size in range(len(members) + 1):
        yield from map(frozenset, itertools.combinations(members, size))
