"""An f that is a plain function of the set: what evaluation and search see of a model, with every set's value known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from discovery.errors import BudgetError
from discovery.sites import Node

Set = frozenset[Node]


class SyntheticFaithfulness:
    """Stands for a `Faithfulness`.

    Args:
        everything: the universe. value: f of a set.
        budget: sets that may be measured; each counts once; a request that goes beyond it runs nothing, and is counted in `refused`.
    """

    def __init__(
        self,
        everything: Iterable[Node],
        value: Callable[[Set], float],
        *,
        n_pairs: int = 8,
        defined: bool = True,
        budget: int | None = None,
    ) -> None:
        self.everything: Set = frozenset(everything)
        self.value, self.n_pairs, self.defined, self.budget = value, n_pairs, defined, budget
        self.measured: dict[Set, float] = {}
        self.refused = 0

    def __call__(
        self, sets: Sequence[Set], label: str = "ablation", pairs: int | None = None
    ) -> Tensor:
        fresh = {frozenset(kept) for kept in sets} - self.measured.keys()
        if self.budget is not None and len(self.measured) + len(fresh) > self.budget:
            self.refused += 1
            raise BudgetError(f"{label} needs {len(fresh)} sets.", "Raise the budget.")
        self.measured |= {kept: float(self.value(kept)) for kept in fresh}
        return torch.tensor([self.measured[frozenset(kept)] for kept in sets], dtype=torch.float64)


def subsets(universe: Iterable[Node]) -> Iterator[Set]:
    """All of them."""
    members = sorted(universe)
    for size in range(len(members) + 1):
        yield from map(frozenset, itertools.combinations(members, size))
