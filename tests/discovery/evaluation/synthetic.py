"""An f that is a plain function of the set.

It is what evaluation and search see of a model, with the value of every set known.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from discovery.agent.search.measured import UnscreenedFunction
from discovery.errors import BudgetError
from discovery.graph import AblationEvidence, Score
from discovery.methods.ablation import NodeSet
from discovery.sites import Node


class SyntheticFaithfulness(UnscreenedFunction):
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


class SyntheticPairs:
    """Replaces a `Faithfulness` in tests that need the metric of each pair.

    m(S) of a pair is the value of the set, plus noise that is drawn once for each set and pair.
    m(U) and m(∅) have no noise.

    Attributes:
        everything: the universe.
        value: gives the mean metric of a set.
        n_pairs: the number of pairs.
        noise: the standard deviation of the noise.
        noise_seed: another seed draws other noise.
        is_defined: whether f means anything.
        pairs_of: how many pairs each set was measured on.
    """

    def __init__(
        self,
        everything: Iterable[Node],
        value: Callable[[NodeSet], float],
        *,
        n_pairs: int = 100,
        noise: float = 0.0,
    ) -> None:
        self.everything: NodeSet = frozenset(everything)
        self.value = value
        self.n_pairs = n_pairs
        self.noise = noise
        self.noise_seed = 0
        self.is_defined = True
        self.full = torch.full((n_pairs,), value(self.everything), dtype=torch.float64)
        self.empty = torch.full((n_pairs,), value(frozenset()), dtype=torch.float64)
        self.pairs_of: dict[NodeSet, int] = {}
        self._metrics: dict[NodeSet, Tensor] = {self.everything: self.full, frozenset(): self.empty}

    @property
    def cost(self) -> int:
        """How many prompts were run, over all sets."""
        return sum(self.pairs_of.values())

    def metric(self, kept: NodeSet) -> Tensor:
        """Return the metric of every pair, whether it was asked for or not."""
        if kept not in self._metrics:
            seed = zlib.crc32(f"{self.noise_seed} {' '.join(map(str, sorted(kept)))}".encode())
            noise = torch.randn(
                self.n_pairs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
            )
            self._metrics[kept] = self.value(kept) + self.noise * noise
        return self._metrics[kept]

    def set_metric(
        self, sets: Sequence[NodeSet], label: str = "ablation", pairs: int | None = None
    ) -> Tensor:
        """Return the metric of each set on all or the first pairs."""
        count = self.n_pairs if pairs is None else min(pairs, self.n_pairs)
        for kept in sets:
            self.pairs_of[kept] = max(self.pairs_of.get(kept, 0), count)
        return torch.stack([self.metric(kept)[:count] for kept in sets])

    def measure_circuit(self, circuit: NodeSet) -> AblationEvidence:
        """Return f(C) and f(U∖C) with intervals of two standard errors."""
        scores = []
        for kept in (circuit, self.everything - circuit):
            (value,) = self([kept]).tolist()
            half = 2 * float(self.metric(kept).std()) / self.n_pairs**0.5
            scores.append(Score(value=value, low=value - half, high=value + half))
        return AblationEvidence(faithfulness=scores[0], knockout=scores[1])

    def __call__(
        self, sets: Sequence[NodeSet], label: str = "ablation", pairs: int | None = None
    ) -> Tensor:
        if not sets:
            return torch.empty(0, dtype=torch.float64)
        metric = self.set_metric(sets, label, pairs).mean(1)
        return (metric - self.empty.mean()) / (self.full.mean() - self.empty.mean())


def subsets(universe: Iterable[Node]) -> Iterator[NodeSet]:
    """Yield every subset of a universe, smaller ones first."""
    members = sorted(universe)
    for size in range(len(members) + 1):
        yield from map(frozenset, itertools.combinations(members, size))
