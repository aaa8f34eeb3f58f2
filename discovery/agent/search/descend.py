"""From many nodes to few: leave out the nodes that hardly matter, many at a time.

Nodes that change f by less than 0.02 when they are left out alone are left out together, as many of
the weakest as (a) and (b) allow. Such a group may hold a backup: a node that matters only once
another one is ablated. Then |f(C∖u) − f(U∖u)| has grown for that other node u (c), and the smallest
part of the group that mends it comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from discovery.agent.search.decision import Decision, OnDecision, format_nodes
from discovery.agent.search.faults import measure_gaps_in
from discovery.agent.search.fit import WITH_MARGIN, measure_fits, total_excess
from discovery.agent.search.measured import SearchFunctions
from discovery.agent.search.subsets import find_sufficient_subset
from discovery.evaluation import thresholds
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

GROUP_SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)  # of the weak nodes, left out together
MAX_SINGLES = 8  # weak nodes that are tried one at a time if no group can go
MAX_ROUNDS = 40


@dataclass
class Descent:
    """A search downwards from a set.

    Attributes:
        functions: f under each ablation.
        on_decision: Called with each decision.
        circuit: The set that the search has reached.
        contexts: For nodes that came back, the node whose backup they are.
        held: Nodes that are not left out again.
    """

    functions: SearchFunctions
    on_decision: OnDecision
    circuit: NodeSet
    contexts: dict[Node, list[NodeSet]] = field(default_factory=dict)
    held: set[Node] = field(default_factory=set)

    def run(self) -> None:
        """Leave nodes out until none can go.

        Raises:
            BudgetError: If the budget ends; `circuit` is the best set by then.
        """
        for _ in range(MAX_ROUNDS):
            dropped = self._choose_group(self._weak_nodes())
            if not dropped:
                return
            self._leave_out(dropped)

    def _weak_nodes(self) -> list[Node]:
        """Return the nodes whose drop is below 0.02 under both ablations, the weakest first.

        A few pairs are enough, since what is left out together is measured on all.
        """
        nodes = sorted(self.circuit - self.held)
        largest = dict.fromkeys(nodes, 0.0)
        for f in self.functions.values():
            without = [self.circuit - {u} for u in nodes]
            drops = f.differences([self.circuit] * len(nodes), without, [], "leaving nodes out")
            for node, drop in zip(nodes, drops.abs().tolist(), strict=True):
                largest[node] = max(largest[node], drop)
        weak = [node for node in nodes if largest[node] < thresholds.MIN_DROP]
        return sorted(weak, key=lambda node: (largest[node], node))

    def _choose_group(self, weak: Sequence[Node]) -> NodeSet:
        """Return the largest group of the weakest nodes that can go; empty if none can."""
        counts = sorted({round(share * len(weak)) for share in GROUP_SHARES} - {0}, reverse=True)
        groups = [frozenset(weak[:count]) for count in counts]
        groups = [group for group in groups if group != self.circuit]
        for group in groups:
            if self._can_go([group])[0]:
                return group
        singles = [frozenset({node}) for node in weak[:MAX_SINGLES] if len(self.circuit) > 1]
        outcomes = self._can_go(singles)
        self.held.update(*(s for s, can_go in zip(singles, outcomes, strict=True) if not can_go))
        return next((s for s, can_go in zip(singles, outcomes, strict=True) if can_go), frozenset())

    def _can_go(self, groups: Sequence[NodeSet]) -> list[bool]:
        """Return for each group whether (a) and (b) hold without it, with a margin."""
        if not groups:
            return []
        remaining = [self.circuit - group for group in groups]
        screened = measure_fits(self.functions, remaining, "leaving nodes out", screen=True)
        hopeful = [n for n, fit in enumerate(screened) if total_excess(fit, WITH_MARGIN) < 0.1]
        fits = measure_fits(self.functions, [remaining[n] for n in hopeful], "leaving nodes out")
        passing = {
            n for n, fit in zip(hopeful, fits, strict=True) if total_excess(fit, WITH_MARGIN) == 0
        }
        return [n in passing for n in range(len(groups))]

    def _leave_out(self, dropped: NodeSet) -> None:
        """Leave a group out, and take back the part of it that other nodes need as a backup."""
        circuit = self.circuit - dropped
        returned: set[Node] = set()
        while True:
            gaps = measure_gaps_in(self.functions, circuit)
            faulty = {u: gap for u, gap in gaps.items() if gap > WITH_MARGIN.gap_in}
            in_order = sorted(faulty, key=lambda u: (-faulty[u], u))
            backups = self._find_first_backups(circuit, in_order, sorted(dropped - returned))
            if not backups:
                break
            returned.update(backups)
            circuit |= set(backups)
        self.held.update(returned)
        self.on_decision(_describe(self.circuit, circuit, returned))
        self.circuit = circuit

    def _find_first_backups(
        self, circuit: NodeSet, faulty: Sequence[Node], candidates: Sequence[Node]
    ) -> list[Node]:
        """Return the backups of the first faulty node that has any among the candidates."""
        for node in faulty if candidates else ():
            backups = find_backups(self.functions, circuit, node, candidates)
            for backup in backups:
                self.contexts.setdefault(backup, []).append(frozenset({node}))
            if backups:
                return backups
        return []


def find_backups(
    functions: SearchFunctions, circuit: NodeSet, ablated: Node, candidates: Sequence[Node]
) -> list[Node]:
    """Find the nodes that do the work of an ablated one: a smallest set that closes its gap (c).

    Args:
        functions: f under each ablation.
        circuit: The circuit.
        ablated: The node u of the circuit whose gap |f(C∖u) − f(U∖u)| is too large.
        candidates: Nodes outside the circuit, the most promising first.

    Returns:
        The nodes; empty if all candidates together do not close the gap.

    Raises:
        BudgetError: If the budget does not reach that far.
    """
    broken = circuit - {ablated}

    def are_enough(additions: Sequence[NodeSet]) -> list[bool]:
        enough = [True] * len(additions)
        for f in functions.values():
            gaps = f.differences(
                [broken | added for added in additions],
                [f.everything - {ablated}] * len(additions),
                [WITH_MARGIN.gap_in],
                "backups",
            )
            close = (gaps.abs() <= WITH_MARGIN.gap_in).tolist()
            enough = [old and new for old, new in zip(enough, close, strict=True)]
        return enough

    if not are_enough([frozenset(candidates)])[0]:
        return []
    return find_sufficient_subset(candidates, are_enough)


def _describe(before: NodeSet, after: NodeSet, returned: set[Node]) -> Decision:
    why = "none of them changes f by 0.02 under either ablation, and (a) and (b) hold without them"
    if returned:
        why += f"; {format_nodes(returned)} came back, since others need them as backups"
    return Decision(
        {"nodes": len(after), "left out": len(before - after)},
        f"leave out {format_nodes(before - after)}",
        why,
    )
