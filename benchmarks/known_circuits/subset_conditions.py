"""Conditions (a) to (d) on every set of nodes, from a table of f: which sets would pass?

The conditions are taken as point values:
(a) 0.8 ≤ f(C) ≤ 1.2.
(b) |f(U∖C)| ≤ 0.2.
(c) |f(C∖u) − f(U∖u)| ≤ 0.2 for every u in C, and |f(C∪v) − f(C)| ≤ 0.1 for every v outside C.
(d) Each v in C has a context K ⊆ C with |f(C∖K) − f(C∖K∖v)| ≥ 0.02, under at least one ablation.
    The contexts that are tried are none, any single node, and the best single node together with
    one more.

The agent tries larger contexts too. δ is 0.02, as for every circuit of up to 20 nodes that meets
(a): 0.5 · 0.8 / 20 = 0.02. So no node has a drop between δ and 0.02, and nothing can be padding.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ConditionsBySubset:
    """The conditions on subsets of a universe, each given as a bit mask.

    Attributes:
        universe: the names of the nodes; node i is bit i of a mask.
        f: f of every subset, indexed by its mask.
    """

    universe: Sequence[str]
    f: Sequence[float]

    def names(self, circuit: int) -> tuple[str, ...]:
        """Return the nodes of a set, in the order of the universe."""
        return tuple(self.universe[bit] for bit in self._bits(circuit))

    def is_sufficient(self, circuit: int) -> bool:
        """Return whether (a) and (b) hold."""
        return 0.8 <= self.f[circuit] <= 1.2 and abs(self.f[self._all ^ circuit]) <= 0.2

    def is_complete(self, circuit: int) -> bool:
        """Return whether (c) holds."""
        gaps_inside = (
            abs(self.f[circuit ^ 1 << bit] - self.f[self._all ^ 1 << bit])
            for bit in self._bits(circuit)
        )
        gaps_outside = (
            abs(self.f[circuit | 1 << bit] - self.f[circuit])
            for bit in self._bits(self._all ^ circuit)
        )
        return max(gaps_inside, default=0.0) <= 0.2 and max(gaps_outside, default=0.0) <= 0.1

    def is_minimal(self, circuit: int) -> bool:
        """Return whether (d) holds under this ablation alone."""
        return self.needed_nodes(circuit) == circuit

    def needed_nodes(self, circuit: int) -> int:
        """Return the nodes of a set that (d) holds for."""
        return sum(
            1 << bit for bit in self._bits(circuit) if self._largest_drop(circuit, bit) >= 0.02
        )

    def _largest_drop(self, circuit: int, bit: int) -> float:
        other_nodes = [1 << other for other in self._bits(circuit) if other != bit]

        def drop(context: int) -> float:
            rest = circuit & ~context
            return abs(self.f[rest] - self.f[rest ^ 1 << bit])

        if not other_nodes:
            return drop(0)
        first = max(other_nodes, key=drop)
        return max(drop(0), drop(first), *(drop(first | other) for other in other_nodes))

    @property
    def _all(self) -> int:
        return len(self.f) - 1

    def _bits(self, mask: int) -> list[int]:
        return [bit for bit in range(len(self.universe)) if mask >> bit & 1]


def find_passing_sets(by_ablation: Sequence[ConditionsBySubset]) -> list[tuple[str, ...]]:
    """Return every set that meets (a) to (c) under each ablation, and (d) under them together.

    Args:
        by_ablation: the conditions under each ablation, over the same universe.
    """
    first = by_ablation[0]
    passing = []
    for mask in range(len(first.f)):
        if not all(part.is_sufficient(mask) and part.is_complete(mask) for part in by_ablation):
            continue
        needed = [part.needed_nodes(mask) for part in by_ablation]
        if functools.reduce(operator.or_, needed) == mask:
            passing.append(first.names(mask))
    return passing
