"""Conditions (a) to (d) on every set of nodes, from a table of f: which sets would pass?

The conditions are taken as point values:
(a) 0.8 ≤ f(C) ≤ 1.2.
(b) |f(U∖C)| ≤ 0.2.
(c) |f(C∖u) − f(U∖u)| ≤ 0.2 for every u in C, and |f(C∪v) − f(C)| ≤ 0.1 for every v outside C.
(d) Each v in C has a context K ⊆ C with |f(C∖K) − f(C∖K∖v)| ≥ 0.02. The contexts that are tried are
    none, any single node, and the best single node together with one more.

(d) is the rule of version 1, with a fixed bound of 0.02 and smaller contexts than the agent tries.
"""

from __future__ import annotations

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

    def passing_sets(self) -> list[tuple[str, ...]]:
        """Return every set that meets (a) to (d), its nodes in the order of the universe."""
        masks = [
            mask
            for mask in range(len(self.f))
            if self.is_sufficient(mask) and self.is_complete(mask) and self.is_minimal(mask)
        ]
        return [tuple(self.universe[bit] for bit in self._bits(mask)) for mask in masks]

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
        """Return whether (d) holds."""
        return all(self._largest_drop(circuit, bit) >= 0.02 for bit in self._bits(circuit))

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
