"""What is wrong with a set by conditions (a) to (d), as points on discovery pairs.

Every node inside a set is looked at, and every node outside. In a large model the nodes outside
are added in groups first, in two random partitions, and only the nodes of groups that change f are
added alone: most nodes do nothing, and two partitions make it unlikely that two nodes cancel in
both.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
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
from discovery.evaluation.contexts import CONTEXT_PAIRS, choose_contexts
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

GROUP_SIZE = 8  # nodes outside that are added together
GROUPING_MIN_NODES = 33  # with fewer nodes outside, each is added alone
NEAR_FACTOR = 1.5  # shares of δ between 1 / 1.5 and 1.5 are measured on all pairs
GROUP_SHARE = 0.5  # a group is opened if it changes f by more than this share of the bound

Order = tuple[float, int, float]
"""What sorts sets: faults by (a) to (c), nodes that no context needs, and used margins."""

Contexts = Mapping[Node, Sequence[NodeSet]]
"""For some nodes, contexts in which they are known to matter."""


@dataclass(frozen=True, kw_only=True)
class DropShare:
    """How much a node is needed (d).

    Attributes:
        share: its largest drop as a share of δ, the larger of both ablations; a lower bound.
        context: what is taken out with it.
    """

    share: float
    context: NodeSet


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What is wrong with a set by conditions (a) to (d), as points.

    Attributes:
        fit: f(C) and f(U∖C) under each ablation.
        gap_in: for each node u of the set, |f(C∖u) − f(U∖u)|, the larger of both ablations (c).
        gap_out: for each node v outside that was looked at alone, |f(C∪v) − f(C)|, the larger of
            both ablations (c).
        drops: for each node of the set, its largest drop (d). Empty if it was not measured.
    """

    fit: FitByAblation
    gap_in: Mapping[Node, float]
    gap_out: Mapping[Node, float]
    drops: Mapping[Node, DropShare] = field(default_factory=dict)

    @property
    def drop_shares(self) -> dict[Node, float]:
        """The largest drop of each node as a share of δ, a lower bound; empty if not measured."""
        return {node: drop.share for node, drop in self.drops.items()}

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
        shares = self.drop_shares
        return sorted(
            (v for v, share in shares.items() if share < bounds.drop_share),
            key=lambda v: (shares[v], v),
        )

    @property
    def used_margin(self) -> float:
        """How much of the margins to the bounds is used up: the sum of the squared shares.

        Each number that lies between its bound with a margin and its bound has a share, and so has
        each node whose drop does. Two numbers halfway are better than one at its bound.
        """
        (low, high), (inner_low, inner_high) = PLAIN.faithfulness, WITH_MARGIN.faithfulness
        used = sum(
            share_of_margin(part.faithfulness, inner_low, low)
            + share_of_margin(part.faithfulness, inner_high, high)
            + share_of_margin(abs(part.knockout), WITH_MARGIN.knockout, PLAIN.knockout)
            for part in self.fit.values()
        )
        used += sum(
            share_of_margin(gap, WITH_MARGIN.gap_in, PLAIN.gap_in) for gap in self.gap_in.values()
        )
        used += sum(
            share_of_margin(gap, WITH_MARGIN.gap_out, PLAIN.gap_out)
            for gap in self.gap_out.values()
        )
        used += sum(
            min(share_of_margin(share, WITH_MARGIN.drop_share, PLAIN.drop_share), 1.0)
            for share in self.drop_shares.values()
        )
        return round(used, 6)

    @property
    def order(self) -> Order:
        """What sorts sets: faults by the conditions themselves, then how little margin is left."""
        return self.severity(PLAIN), len(self.unneeded_nodes(PLAIN)), self.used_margin


def share_of_margin(value: float, inner: float, outer: float) -> float:
    """Return how far a value is from the inner bound to the outer one, squared; 0 inside."""
    return max((value - inner) / (outer - inner), 0.0) ** 2


def find_faults(functions: SearchFunctions, circuit: NodeSet, seed: int) -> Faults:
    """Check (a) to (c) of a set, as points on discovery pairs.

    Args:
        functions: f under each ablation.
        circuit: the set.
        seed: the seed of the random groups.

    Raises:
        BudgetError: if the budget does not reach that far.
    """
    (fit,) = measure_fits(functions, [circuit])
    return Faults(
        fit=fit,
        gap_in=measure_gaps_in(functions, circuit),
        gap_out=find_gaps_out(functions, circuit, seed),
    )


def add_drop_shares(
    functions: SearchFunctions,
    circuit: NodeSet,
    faults: Faults,
    contexts: Contexts | None = None,
    searched: Collection[Node] = (),
) -> Faults:
    """Check (d) of a set as well; if it misses (a) to (c), nothing is measured.

    Args:
        functions: f under each ablation.
        circuit: the set.
        faults: what is wrong with it by (a) to (c).
        contexts: contexts in which some nodes are known to matter.
        searched: nodes whose contexts have been searched in a larger set.

    Raises:
        BudgetError: if the budget does not reach that far.
    """
    if faults.severity(PLAIN) > 0:
        return faults
    drops = measure_drop_shares(functions, circuit, faults.fit, contexts or {}, searched)
    return replace(faults, drops=drops)


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
            "nodes outside",
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
    searched: Collection[Node] = (),
) -> dict[Node, DropShare]:
    """Return each node's largest drop as a share of δ, the larger of both ablations.

    A node is tried alone, and if it falls short of δ with a margin, in the contexts in which the
    search has seen it matter. A node that falls short of δ even so is tried in the contexts that
    condition (d) would choose, unless it has been `searched` before, in a larger set. A node that
    reaches δ is not tried further, so its share is a lower bound. Shares near 1 are measured again
    on all pairs: the largest drop of many contexts is too large on the pairs that chose it.
    """
    shares = _DropShares(functions, circuit, fit)
    shares.try_contexts([(v, frozenset()) for v in sorted(circuit)])
    known = {
        v: {k & circuit - {v} for k in contexts.get(v, ())}
        for v in shares.short_of(WITH_MARGIN.drop_share)
    }
    shares.try_contexts([(v, context) for v, of_v in known.items() for context in of_v if context])
    unknown = [v for v in shares.short_of(PLAIN.drop_share) if v not in searched]
    chosen = choose_contexts(functions, circuit, shares.needed, unknown)
    shares.try_contexts(
        [
            (v, drop.context)
            for by_node in chosen.values()
            for v, drop in by_node.items()
            if drop.context
        ]
    )
    shares.measure_near()
    return shares.largest


class _DropShares:
    """The largest drop of each node of a circuit until now, as a share of δ.

    Attributes:
        largest: the drops.
        needed: δ under each ablation.
    """

    def __init__(self, functions: SearchFunctions, circuit: NodeSet, fit: FitByAblation) -> None:
        self.largest = {v: DropShare(share=0.0, context=frozenset()) for v in sorted(circuit)}
        self.needed = {
            ablation: minimal_drop(fit[ablation].faithfulness, len(circuit))
            for ablation in functions
        }
        self._functions = functions
        self._circuit = circuit

    def short_of(self, share: float) -> list[Node]:
        """Return the nodes with a smaller share."""
        return [v for v, drop in self.largest.items() if drop.share < share]

    def try_contexts(self, jobs: Sequence[tuple[Node, NodeSet]]) -> None:
        """Measure nodes in contexts, and keep what is larger than before."""
        for (v, _), drop in zip(jobs, self._measure(jobs, CONTEXT_PAIRS), strict=True):
            if drop.share > self.largest[v].share:
                self.largest[v] = drop

    def measure_near(self) -> None:
        """Measure the shares near 1 on all pairs, each in its context."""
        near = [(v, drop.context) for v, drop in self.largest.items() if _is_near(drop.share)]
        for (v, _), drop in zip(near, self._measure(near, None), strict=True):
            self.largest[v] = drop

    def _measure(self, jobs: Sequence[tuple[Node, NodeSet]], pairs: int | None) -> list[DropShare]:
        """Return the drop of each node in its context, the larger of both ablations."""
        shares = [0.0] * len(jobs)
        for ablation, f in self._functions.items():
            drops = _measure_drops(f, self._circuit, jobs, pairs)
            delta = self.needed[ablation]
            of_ablation = [drop / delta if delta else 0.0 for drop in drops]
            shares = [max(pair) for pair in zip(shares, of_ablation, strict=True)]
        return [
            DropShare(share=share, context=context)
            for share, (_, context) in zip(shares, jobs, strict=True)
        ]


def _is_near(share: float) -> bool:
    return PLAIN.drop_share / NEAR_FACTOR <= share <= PLAIN.drop_share * NEAR_FACTOR


def _measure_drops(
    f: SearchFunction,
    circuit: NodeSet,
    jobs: Sequence[tuple[Node, NodeSet]],
    pairs: int | None,
) -> list[float]:
    """Return the drops of nodes in contexts, on so many pairs; None means all."""
    if not jobs:
        return []
    sets = [nodes for v, context in jobs for nodes in (circuit - context, circuit - context - {v})]
    values = f(sets, "minimality", None if pairs is None else min(pairs, f.n_pairs))
    drops: list[float] = (values[0::2] - values[1::2]).abs().tolist()
    return drops
