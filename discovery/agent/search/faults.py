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
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

GROUP_SIZE = 8  # nodes outside that are added together
GROUPING_MIN_NODES = 33  # with fewer nodes outside, each is added alone
GROUP_SHARE = 0.5  # a group is opened if it changes f by more than this share of the bound
MAX_SINGLE_CONTEXTS = 16  # nodes that are tried as the context of another one (d)
MAX_CONTEXT = 3  # nodes in a context

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
    def order(self) -> tuple[float, int, float, int]:
        """What sorts sets: faults by the conditions themselves, then by those with a margin."""
        return (
            self.severity(PLAIN),
            len(self.unneeded_nodes(PLAIN)),
            self.severity(WITH_MARGIN),
            len(self.unneeded_nodes(WITH_MARGIN)),
        )


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


def measure_gaps_in(functions: SearchFunctions, circuit: NodeSet) -> dict[Node, float]:
    """Return |f(C∖u) − f(U∖u)| for every node u of the set, the larger of both ablations."""
    nodes = sorted(circuit)
    by_ablation = [
        f.differences(
            [circuit - {u} for u in nodes],
            [f.everything - {u} for u in nodes],
            [PLAIN.gap_in, WITH_MARGIN.gap_in],
            "completeness",
        )
        .abs()
        .tolist()
        for f in functions.values()
    ]
    return {u: max(gaps[n] for gaps in by_ablation) for n, u in enumerate(nodes)}


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

    A node that reaches δ is not tried in further contexts, so its share is a lower bound. A node
    that does not is tried in the contexts that are given, in single nodes, and in the best of
    these with up to two nodes more.
    """
    nodes = sorted(circuit)
    needed = {
        ablation: minimal_drop(fit[ablation].faithfulness, len(nodes)) for ablation in functions
    }
    shares = dict.fromkeys(nodes, 0.0)

    def try_contexts(tried: Mapping[Node, Sequence[NodeSet]]) -> dict[Node, NodeSet]:
        """Measure drops in contexts, and return the best of the tried contexts of each node."""
        best: dict[Node, tuple[float, NodeSet]] = {}
        jobs = [(v, context) for v, of_v in tried.items() for context in of_v]
        for ablation, f in functions.items():
            drops = _measure_drops(f, circuit, jobs, needed[ablation])
            for (v, context), drop in zip(jobs, drops, strict=True):
                share = drop / needed[ablation] if needed[ablation] else 0.0
                shares[v] = max(shares[v], share)
                best[v] = max(best.get(v, (-1.0, context)), (share, context), key=_first)
        return {v: context for v, (_, context) in best.items()}

    def short() -> list[Node]:
        return [v for v in nodes if shares[v] < WITH_MARGIN.drop_share]

    try_contexts({v: [frozenset()] for v in nodes})
    try_contexts({v: [k for k in contexts.get(v, ()) if v not in k] for v in short()})
    best = try_contexts({v: _single_contexts(nodes, v) for v in short()})
    for _ in range(MAX_CONTEXT - 1):
        best = try_contexts({v: _extend_context(nodes, v, best[v]) for v in short() if best.get(v)})
    return shares


def _first(scored: tuple[float, NodeSet]) -> float:
    return scored[0]


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


def _single_contexts(nodes: Sequence[Node], v: Node) -> list[NodeSet]:
    """Return single nodes as contexts of `v`: all, or those of the nearest layers."""
    others = sorted((w for w in nodes if w != v), key=lambda w: (_layers_apart(v, w), w))
    return [frozenset({w}) for w in others[:MAX_SINGLE_CONTEXTS]]


def _layers_apart(one: Node, other: Node) -> int:
    return abs((one.layer or 0) - (other.layer or 0))


def _extend_context(nodes: Sequence[Node], v: Node, context: NodeSet) -> list[NodeSet]:
    """Return the context with one node more, of those that are tried as contexts at all."""
    return [context | single for single in _single_contexts(nodes, v) if not single <= context]
