"""What is wrong with a set by conditions (a) to (d), as points on discovery pairs.

Every node inside a set is looked at, and every node outside. In a large model the nodes outside
are added in groups first, in two random partitions, and only the nodes of groups that change f are
added alone: most nodes do nothing, and two partitions make it unlikely that two nodes cancel in
both.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from discovery.agent.search.backups import measure_gaps_in
from discovery.agent.search.fit import (
    PLAIN,
    WITH_MARGIN,
    Bounds,
    FitByAblation,
    measure_fits,
    total_excess,
)
from discovery.agent.search.measured import SearchFunction, SearchFunctions, get_universe
from discovery.evaluation import minimal_drop
from discovery.evaluation.contexts import choose_contexts
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

GROUP_SIZE = 8  # nodes outside that are added together
GROUPING_MIN_NODES = 33  # with fewer nodes outside, each is added alone
GROUP_SHARE = 0.5  # a group is opened if it changes f by more than this share of the bound

Order = tuple[float, int, float]
"""What sorts sets: faults by (a) to (c), nodes that no context needs, and used margins."""

Contexts = Mapping[Node, Sequence[NodeSet]]
"""For some nodes, contexts in which they are known to matter."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What is wrong with a set by conditions (a) to (d), as points.

    Attributes:
        fit: f(C) and f(U∖C) under each ablation.
        gap_in: For each node u of the set, |f(C∖u) − f(U∖u)|, the larger of both ablations (c).
        gap_out: For each node v outside that was looked at alone, |f(C∪v) − f(C)|, the larger of
            both ablations (c).
        drop_shares: For each node of the set, a lower bound on its largest drop as a share of δ,
            the larger of both ablations (d). Empty if it was not measured.
    """

    fit: FitByAblation
    gap_in: Mapping[Node, float]
    gap_out: Mapping[Node, float]
    drop_shares: Mapping[Node, float] = field(default_factory=dict)

    def excess(self, bounds: Bounds) -> float:
        """Return how far the set misses the bounds of (a) and (b), over both ablations."""
        return total_excess(self.fit, bounds)

    def severity(self, bounds: Bounds) -> float:
        """Return how far the set misses the bounds of (a) to (c), summed."""
        inside = sum(max(gap - bounds.gap_in, 0.0) for gap in self.gap_in.values())
        outside = sum(max(gap - bounds.gap_out, 0.0) for gap in self.gap_out.values())
        return round(self.excess(bounds) + inside + outside, 6)

    def unneeded_nodes(self, bounds: Bounds) -> list[Node]:
        """Return the nodes that no context needs, the least needed first."""
        return sorted(
            (v for v, share in self.drop_shares.items() if share < bounds.drop_share),
            key=lambda v: (self.drop_shares[v], v),
        )

    @property
    def used_margin(self) -> float:
        """How much of the margins to the bounds is used up, in whole margins, summed.

        Each number that lies between its bound with a margin and its bound adds a share, and so
        does each node whose drop does.
        """
        (low, high), (inner_low, inner_high) = PLAIN.faithfulness, WITH_MARGIN.faithfulness
        used = sum(
            max(
                (inner_low - part.faithfulness) / (inner_low - low),
                (part.faithfulness - inner_high) / (high - inner_high),
                0.0,
            )
            + _share_of_margin(abs(part.knockout), WITH_MARGIN.knockout, PLAIN.knockout)
            for part in self.fit.values()
        )
        used += sum(
            _share_of_margin(gap, WITH_MARGIN.gap_in, PLAIN.gap_in) for gap in self.gap_in.values()
        )
        used += sum(
            _share_of_margin(gap, WITH_MARGIN.gap_out, PLAIN.gap_out)
            for gap in self.gap_out.values()
        )
        used += sum(
            min(_share_of_margin(share, WITH_MARGIN.drop_share, PLAIN.drop_share), 1.0)
            for share in self.drop_shares.values()
        )
        return round(used, 6)

    @property
    def order(self) -> Order:
        """What sorts sets: faults by the conditions themselves, then how little margin is left."""
        return self.severity(PLAIN), len(self.unneeded_nodes(PLAIN)), self.used_margin


def _share_of_margin(value: float, inner: float, outer: float) -> float:
    """Return how far a value is from the inner bound towards the outer one; 0 if it is inside."""
    return max((value - inner) / (outer - inner), 0.0)


def find_faults(functions: SearchFunctions, circuit: NodeSet, seed: int) -> Faults:
    """Check (a) to (c) of a set, as points on discovery pairs.

    Args:
        functions: f under each ablation.
        circuit: The set.
        seed: The seed of the random groups.

    Raises:
        BudgetError: If the budget does not reach that far.
    """
    (fit,) = measure_fits(functions, [circuit])
    return Faults(
        fit=fit,
        gap_in=measure_gaps_in(functions, circuit),
        gap_out=find_gaps_out(functions, circuit, seed),
    )


def add_drop_shares(
    functions: SearchFunctions, circuit: NodeSet, faults: Faults, contexts: Contexts | None = None
) -> Faults:
    """Check (d) of a set as well; if it misses (a) to (c), nothing is measured.

    Args:
        functions: f under each ablation.
        circuit: The set.
        faults: What is wrong with it by (a) to (c).
        contexts: Contexts in which some nodes are known to matter.

    Raises:
        BudgetError: If the budget does not reach that far.
    """
    if faults.severity(PLAIN) > 0:
        return faults
    shares = measure_drop_shares(functions, circuit, faults.fit, contexts or {})
    return replace(faults, drop_shares=shares)


def find_gaps_out(functions: SearchFunctions, circuit: NodeSet, seed: int) -> dict[Node, float]:
    """Return |f(C∪v) − f(C)| for the nodes v outside that may matter, the larger of both ablations.

    With many nodes outside, these are the nodes of the groups that change f.
    """
    outside = sorted(get_universe(functions) - circuit)
    suspects = outside
    if len(outside) >= GROUPING_MIN_NODES:
        suspects = _find_suspects(functions, circuit, outside, seed)
    by_ablation = [
        _gaps_out(f, circuit, [frozenset({v}) for v in suspects], 1.0) for f in functions.values()
    ]
    return {v: max(gaps[n] for gaps in by_ablation) for n, v in enumerate(suspects)}


def _find_suspects(
    functions: SearchFunctions, circuit: NodeSet, outside: Sequence[Node], seed: int
) -> list[Node]:
    """Return the nodes of all groups that change f when they are added to the circuit."""
    groups: list[NodeSet] = []
    for partition in range(2):
        shuffled = list(outside)
        random.Random(f"groups-{seed}-{partition}").shuffle(shuffled)
        groups += [
            frozenset(shuffled[n : n + GROUP_SIZE]) for n in range(0, len(shuffled), GROUP_SIZE)
        ]
    suspects: set[Node] = set()
    for f in functions.values():
        gaps = _gaps_out(f, circuit, groups, GROUP_SHARE)
        opened = [
            group
            for group, gap in zip(groups, gaps, strict=True)
            if gap > GROUP_SHARE * WITH_MARGIN.gap_out
        ]
        suspects.update(*opened)
    return sorted(suspects)


def _gaps_out(
    f: SearchFunction, circuit: NodeSet, additions: Sequence[NodeSet], share: float
) -> list[float]:
    gaps: list[float] = (
        f.differences(
            [circuit | added for added in additions],
            [circuit] * len(additions),
            [share * PLAIN.gap_out, share * WITH_MARGIN.gap_out],
            "completeness",
        )
        .abs()
        .tolist()
    )
    return gaps


def measure_drop_shares(
    functions: SearchFunctions,
    circuit: NodeSet,
    fit: FitByAblation,
    contexts: Contexts,
) -> dict[Node, float]:
    """Return each node's largest drop as a share of δ, the larger of both ablations.

    The contexts are chosen as condition (d) chooses them. A node that falls short in them is tried
    in the contexts in which the search has seen it matter. A node that reaches δ is not tried
    further, so its share is a lower bound.
    """
    nodes = sorted(circuit)
    needed = {
        ablation: minimal_drop(fit[ablation].faithfulness, len(nodes)) for ablation in functions
    }
    chosen = choose_contexts(functions, circuit, needed)
    shares = {
        v: max(_share(chosen[ablation][v].drop, needed[ablation]) for ablation in functions)
        for v in nodes
    }
    known = [
        (v, context)
        for v in nodes
        if shares[v] < WITH_MARGIN.drop_share
        for context in contexts.get(v, ())
        if v not in context
    ]
    for ablation, f in functions.items():
        drops = _measure_drops(f, circuit, known, needed[ablation])
        for (v, _), drop in zip(known, drops, strict=True):
            shares[v] = max(shares[v], _share(drop, needed[ablation]))
    return shares


def _share(drop: float, needed: float) -> float:
    return drop / needed if needed else 0.0


def _measure_drops(
    f: SearchFunction,
    circuit: NodeSet,
    jobs: Iterable[tuple[Node, NodeSet]],
    needed: float,
) -> list[float]:
    with_node = []
    without_node = []
    for v, context in jobs:
        with_node.append(circuit - context)
        without_node.append(circuit - context - {v})
    bounds = [needed, WITH_MARGIN.drop_share * needed]
    drops: list[float] = f.differences(with_node, without_node, bounds, "minimality").abs().tolist()
    return drops
