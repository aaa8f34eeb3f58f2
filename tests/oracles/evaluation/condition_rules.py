"""Conditions (c) and (d) by their definitions: every node, on all pairs, one number at a time.

Nothing is screened, sampled or shared. The metric of a set is a list with one number a pair.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from statistics import fmean, stdev

from scipy.stats import t as student_t

from discovery.methods.ablation import NodeSet
from discovery.sites import Node

MetricOfSet = Callable[[NodeSet], Sequence[float]]


class ConditionOracle:
    """A universe with the metric of every set.

    Attributes:
        everything: the universe.
        metric: gives the metric of a set, one number a pair.
    """

    def __init__(self, everything: NodeSet, metric: MetricOfSet) -> None:
        self.everything = everything
        self.metric = metric

    def f(self, kept: NodeSet) -> float:
        """Return f of a set."""
        empty = fmean(self.metric(frozenset()))
        return (fmean(self.metric(kept)) - empty) / (fmean(self.metric(self.everything)) - empty)

    def gaps_in(self, circuit: NodeSet) -> dict[Node, float]:
        """Return |f(C∖u) − f(U∖u)| of every node of the circuit."""
        return {u: abs(self.f(circuit - {u}) - self.f(self.everything - {u})) for u in circuit}

    def gaps_out(self, circuit: NodeSet) -> dict[Node, float]:
        """Return |f(C∪v) − f(C)| of every node outside."""
        own = self.f(circuit)
        return {v: abs(self.f(circuit | {v}) - own) for v in self.everything - circuit}

    def low_of_gap(self, first: NodeSet, second: NodeSet, n_tests: int) -> float:
        """Return the lower bound of |f(first) − f(second)|, one of so many that hold together."""
        change = [a - b for a, b in zip(self.metric(first), self.metric(second), strict=True)]
        gap = [
            a - b
            for a, b in zip(self.metric(self.everything), self.metric(frozenset()), strict=True)
        ]
        ratio = fmean(change) / fmean(gap)
        residual = [(d - ratio * g) / fmean(gap) for d, g in zip(change, gap, strict=True)]
        error = stdev(residual) / math.sqrt(len(change))
        return max(0.0, abs(ratio) - student_t.ppf(1 - 0.05 / n_tests, len(change) - 1) * error)

    def largest_drop(self, circuit: NodeSet, v: Node, max_context: int) -> float:
        """Return the largest |f(C∖K) − f(C∖K∖v)| over every context of at most so many nodes."""
        others = sorted(circuit - {v})
        return max(
            abs(self.f(circuit - set(k)) - self.f(circuit - set(k) - {v}))
            for size in range(max_context + 1)
            for k in itertools.combinations(others, size)
        )


def sign_flip_by_definition(differences: Sequence[float]) -> float:
    """Return the share of all signs that give a sum at least as large; for a few pairs only."""
    observed = abs(sum(differences))
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return fmean(value >= observed - 1e-9 for value in sums)


def draw_bound(
    n_rest: int, n_drawn: int, n_found: int, *, trials: int = 4000, level: float = 0.05
) -> int:
    """Return the most marked nodes among `n_rest` that are compatible with what was drawn.

    A number of marked nodes is compatible if at most `n_found` of them are among `n_drawn` random
    nodes in more than 5% of simulated draws.
    """
    generator = random.Random(0)
    most = n_found
    for n_marked in range(n_found, n_rest + 1):
        hits = sum(
            sum(node < n_marked for node in generator.sample(range(n_rest), n_drawn)) <= n_found
            for _ in range(trials)
        )
        if hits / trials > level:
            most = n_marked
        elif n_marked > most + 3:
            break
    return most
