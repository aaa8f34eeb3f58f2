"""The project's conditions (a) to (d) on a circuit, by point values, over a table of f for every subset: which sets would pass?

(a) 0.8 ≤ f(C) ≤ 1.2; (b) |f(U∖C)| ≤ 0.2; (c) |f(C∖u) − f(U∖u)| ≤ 0.2 for u in C and |f(C∪v) − f(C)| ≤ 0.1 for v outside;
(d) for each v in C some context K ⊆ C has |f(C∖K) − f(C∖K∖v)| ≥ 0.02: none, any single node, or the best single node and one more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ConditionsBySubset:
    """The table `f` is indexed by bit masks over `universe`."""

    universe: Sequence[str]
    f: Sequence[float]

    def passing_sets(self) -> list[tuple[str, ...]]:
        """Every set of nodes that meets all four of (a) to (d), its nodes in universe order."""
        masks = [
            mask
            for mask in range(len(self.f))
            if self.is_sufficient(mask) and self.is_complete(mask) and self.is_minimal(mask)
        ]
        return [tuple(self.universe[bit] for bit in self._bits(mask)) for mask in masks]

    def is_sufficient(self, circuit: int) -> bool:
        """(a) and (b)."""
        return 0.8 <= self.f[circuit] <= 1.2 and abs(self.f[self._all ^ circuit]) <= 0.2

    def is_complete(self, circuit: int) -> bool:
        """(c)."""
        inside = (
            abs(self.f[circuit ^ 1 << bit] - self.f[self._all ^ 1 << bit])
            for bit in self._bits(circuit)
        )
        outside = (
            abs(self.f[circuit | 1 << bit] - self.f[circuit])
            for bit in self._bits(self._all ^ circuit)
        )
        return max(inside, default=0.0) <= 0.2 and max(outside, default=0.0) <= 0.1

    def is_minimal(self, circuit: int) -> bool:
        """(d)."""
        return all(self._largest_drop(circuit, bit) >= 0.02 for bit in self._bits(circuit))

    def _largest_drop(self, circuit: int, bit: int) -> float:
        others = [1 << other for other in self._bits(circuit) if other != bit]

        def drop(context: int) -> float:
            rest = circuit & ~context
            return abs(self.f[rest] - self.f[rest ^ 1 << bit])

        if not others:
            return drop(0)
        first = max(others, key=drop)
        return max(drop(0), drop(first), *(drop(first | other) for other in others))

    @property
    def _all(self) -> int:
        return len(self.f) - 1

    def _bits(self, mask: int) -> list[int]:
        return [bit for bit in range(len(self.universe)) if mask >> bit & 1]
