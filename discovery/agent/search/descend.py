"""From many nodes to few: leave out the nodes that hardly matter, many at a time.

Nodes that change f by less than 0.02 when they are left out alone are left out together, as many as
(a), (b) and the largest gaps of (c) allow. They go in an order that keeps f(C) close to f(U), and
f(C∖u) close to f(U∖u) for the nodes u with the largest gaps: in a long tail some nodes work for the
behaviour and some against it, and many matter only once another node is ablated. If only the size
of their effect counted, the gaps would grow until hardly any node could go. A group may still hold
a backup: a node that matters only once another one is ablated. Then |f(C∖u) − f(U∖u)| has grown for
that other node u, and the part of the group that closes this gap comes back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from discovery.agent.search.backups import (
    MAX_LARGEST_GAPS,
    find_all_backups,
    keeps_largest_gaps,
    measure_gaps_in,
)
from discovery.agent.search.decision import Decision, OnDecision, format_nodes
from discovery.agent.search.fit import ROUNDING, WITH_MARGIN, measure_passing
from discovery.agent.search.measured import SearchFunctions
from discovery.evaluation import thresholds
from discovery.graph import EvidenceAblation
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

MAX_SINGLES = 4  # weak nodes that are tried alone if the first one cannot go
MAX_ROUNDS = 40
MAX_SCREENED_EXCESS = 0.1  # a set that misses (a) and (b) by more on a few pairs is out
MIN_GROUP_SHARE = 0.05  # if a smaller part of over 20 nodes goes in a round, the descent ends
MAX_ALL_WATCHED = 40  # if a circuit has more nodes, only N_WATCHED gaps are measured in a round
N_WATCHED = 16
BISECTION_STEP = 0.15  # the bisection ends when it knows a group's size up to this share of it

NOTHING: NodeSet = frozenset()

Drops = Mapping[EvidenceAblation, Mapping[Node, float]]
"""f(C) − f(C∖u) of each node u of a circuit, under each ablation."""


@dataclass(frozen=True)
class Deviation:
    """How far a circuit is from the whole model, with some nodes ablated in both.

    Attributes:
        value: f(C∖K) − f(U∖K), with K the ablated nodes.
        drops: f(C∖K) − f(C∖K∖u) of each node u outside K.
    """

    value: float
    drops: Mapping[Node, float]

    def without(self, node: Node) -> float:
        """Return what the value should be without a node of the circuit."""
        return self.value - self.drops.get(node, 0.0)


@dataclass
class Descent:
    """A search downwards from a set.

    Attributes:
        functions: f under each ablation.
        on_decision: called with each decision.
        circuit: the set that the search has reached.
        contexts: for nodes that came back, the node whose backup they are.
        required: nodes that are not left out again.
    """

    functions: SearchFunctions
    on_decision: OnDecision
    circuit: NodeSet
    contexts: dict[Node, list[NodeSet]] = field(default_factory=dict)
    required: set[Node] = field(default_factory=set)
    _gaps: dict[Node, float] = field(default_factory=dict)  # when they were last measured

    def run(self) -> None:
        """Leave nodes out until none can go, or of many so few that a round is not worth its cost.

        Raises:
            BudgetError: if the budget ends; `circuit` is the best set by then.
        """
        self._gaps = measure_gaps_in(self.functions, self.circuit)
        for _ in range(MAX_ROUNDS):
            group = self._choose_group()
            if not group:
                return
            size = len(self.circuit)
            self._leave_out(group)
            if size > 1 / MIN_GROUP_SHARE and size - len(self.circuit) < MIN_GROUP_SHARE * size:
                return

    def _choose_group(self) -> NodeSet:
        """Return a large group of weak nodes that can go together; empty if none can."""
        drops = self._measure_drops(self.circuit - self.required)
        weak = self._sort_weak(drops)
        if not weak:
            return frozenset()
        group = self._find_largest_group(weak)
        return group or self._find_others(weak, drops)

    def _measure_drops(self, nodes: Collection[Node], ablated: NodeSet = NOTHING) -> Drops:
        """Measure the drop of each node on a few pairs, alone or with other nodes ablated too.

        A few are enough, since what is left out together is measured on all.
        """
        nodes = sorted(set(nodes) - ablated)
        remaining = self.circuit - ablated
        drops: dict[EvidenceAblation, dict[Node, float]] = {}
        for ablation, f in self.functions.items():
            without = [remaining - {u} for u in nodes]
            values = f.differences([remaining] * len(nodes), without, [], "leaving nodes out")
            drops[ablation] = dict(zip(nodes, values.tolist(), strict=True))
        return drops

    def _sort_weak(self, drops: Drops) -> list[Node]:
        """Return the nodes whose drop is below 0.02 under both ablations, in the order to go.

        Each next node is the one that leaves the smallest deviations from the whole model, squared
        and summed, if drops add up. Of nodes that leave equally small ones, the weakest goes first.
        """
        nodes = self.circuit - self.required
        largest = {u: max(abs(by_node[u]) for by_node in drops.values()) for u in nodes}
        waiting = {u for u in nodes if largest[u] < thresholds.MIN_DROP}
        deviations = self._measure_deviations(waiting, drops) if waiting else []
        order: list[Node] = []
        while waiting:
            left = {u: sum(part.without(u) ** 2 for part in deviations) for u in waiting}
            u = min(waiting, key=lambda u: (round(left[u], ROUNDING), largest[u], u))
            deviations = [replace(part, value=part.without(u)) for part in deviations]
            waiting.remove(u)
            order.append(u)
        return order

    def _measure_deviations(self, nodes: Collection[Node], drops: Drops) -> list[Deviation]:
        """Return how far f(C) is from f(U), and f(C∖u) from f(U∖u) for the largest gaps."""
        by_gap = sorted(self._gaps, key=lambda u: (-round(self._gaps[u], ROUNDING), u))
        deviations = []
        for ablated in [NOTHING, *(frozenset({u}) for u in by_gap[:MAX_LARGEST_GAPS])]:
            drops_here = self._measure_drops(nodes, ablated) if ablated else drops
            for ablation, f in self.functions.items():
                circuit, model = f(
                    [self.circuit - ablated, f.everything - ablated], "leaving nodes out"
                )
                deviations.append(Deviation(float(circuit - model), drops_here[ablation]))
        return deviations

    def _measure_whole(self) -> dict[EvidenceAblation, float]:
        """Return f(C) under each ablation."""
        return {
            ablation: float(f([self.circuit], "leaving nodes out")[0])
            for ablation, f in self.functions.items()
        }

    def _find_largest_group(self, weak: Sequence[Node]) -> NodeSet:
        """Return about as many of the first weak nodes as can go together, found by bisection."""
        most = len(weak) - (len(weak) == len(self.circuit))
        low, high = 0, most + 1  # the first `low` nodes can go
        size = most
        while size > low:
            if self._can_go([frozenset(weak[:size])])[0]:
                low = size
            else:
                high = size
            if high - low <= max(1, BISECTION_STEP * low):
                break
            size = (low + high) // 2
        return frozenset(weak[:low])

    def _find_others(self, weak: Sequence[Node], drops: Drops) -> NodeSet:
        """Return weak nodes that can go though the first one cannot; empty if there are none.

        Only nodes are tried without which f should stay within the bounds by their own drops.
        """
        whole = self._measure_whole()
        low, high = WITH_MARGIN.faithfulness
        hopeful = [
            u
            for u in weak[1:]
            if all(low <= value - drops[ablation][u] <= high for ablation, value in whole.items())
        ][:MAX_SINGLES]
        outcomes = self._can_go([frozenset({u}) for u in hopeful])
        passing = [u for u, can_go in zip(hopeful, outcomes, strict=True) if can_go]
        self.required.update(weak[:1], set(hopeful) - set(passing))
        return self._find_largest_group(passing) if len(passing) > 1 else frozenset(passing)

    def _can_go(self, groups: Sequence[NodeSet]) -> list[bool]:
        """Return for each group whether (a), (b) and the largest gaps allow to leave it out.

        (a) and (b) must hold with a margin. Of (c), only the nodes with the largest gaps are looked
        at here, since these gaps grow first when f(C) sinks.
        """
        remaining = [self.circuit - group for group in groups]
        passing = measure_passing(
            self.functions, remaining, "leaving nodes out", MAX_SCREENED_EXCESS
        )
        return [
            nodes in passing and keeps_largest_gaps(self.functions, nodes, self._gaps, WITH_MARGIN)
            for nodes in remaining
        ]

    def _leave_out(self, group: NodeSet) -> None:
        """Leave a group out, and take back the part of it that other nodes need as a backup."""
        remaining = self.circuit - group
        gaps = measure_gaps_in(self.functions, remaining, self._choose_watched(remaining))
        backups = find_all_backups(self.functions, remaining, gaps, sorted(group))
        for backup, ablated in backups.behind.items():
            self.contexts.setdefault(backup, []).append(frozenset({ablated}))
        self.required.update(backups.nodes)
        circuit = remaining.union(backups.nodes)
        if backups.nodes:
            gaps = measure_gaps_in(self.functions, circuit, self._choose_watched(circuit))
        self.on_decision(_describe(self.circuit, circuit, backups.nodes))
        self.circuit = circuit
        self._gaps = {u: gap for u, gap in (self._gaps | gaps).items() if u in circuit}

    def _choose_watched(self, circuit: NodeSet) -> list[Node]:
        """Return the nodes whose gaps are measured in a round: of many, those with large gaps.

        All gaps of the set that a descent ends with are measured when it is mended.
        """
        if len(circuit) <= MAX_ALL_WATCHED:
            return sorted(circuit)
        by_gap = sorted(circuit, key=lambda u: (-round(self._gaps.get(u, 0.0), ROUNDING), u))
        return sorted(by_gap[:N_WATCHED])


def _describe(before: NodeSet, after: NodeSet, returned: Sequence[Node]) -> Decision:
    why = "none of them changes f by 0.02 under either ablation, and (a) and (b) hold without them"
    if returned:
        why += f"; {format_nodes(returned)} came back, since others need them as backups"
    return Decision(
        {"nodes": len(after), "left out": len(before - after)},
        f"leave out {format_nodes(before - after) or 'nothing'}",
        why,
    )
