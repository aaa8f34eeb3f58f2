"""From a set with faults to one without: add what condition (c) misses, and what (a) and (b) need.

Single effects rank nodes well, but they miss what acts only together: backups, redundant pairs,
twins that cancel. Condition (c) says what to add. A node outside that changes f(C) when it joins
is added. If the model without u does better than the circuit without u, then nodes outside do the
work of u, and the smallest set that does is added. Every set is judged under both ablations. In
the end the set with the fewest faults wins, and among equals the smallest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from discovery.agent.search.backups import Backups, find_all_backups
from discovery.agent.search.decision import Decision, OnDecision, format_nodes, ignore_decision
from discovery.agent.search.faults import Faults, find_faults
from discovery.agent.search.fit import (
    MAX_SMALL_CIRCUIT,
    PLAIN,
    ROUNDING,
    WITH_MARGIN,
    measure_fits,
    total_excess,
)
from discovery.agent.search.measured import SearchFunctions
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

MAX_EXAMINED_SETS = 40
MAX_REPAIRS = 32  # outside nodes that are tried if (a) or (b) fails, the highest ranked first
MAX_EXACT_REPAIRS = 4  # of these, so many are measured on all pairs


@dataclass(frozen=True)
class Proposal:
    """A set to examine next, and the decision that leads to it.

    Attributes:
        circuit: the set.
        decision: what is added, and why.
        behind: for nodes that are added as backups, the node whose work they do.
    """

    circuit: NodeSet
    decision: Decision
    behind: Mapping[Node, Node] = field(default_factory=dict)


@dataclass
class Mending:
    """A search for a set without faults by (a) to (c).

    Attributes:
        functions: f under each ablation.
        ranking: all nodes, the largest effect first.
        seed: the seed of the random groups.
        on_decision: called with each decision.
        faults_of: what is wrong with each set that was examined.
        contexts: for some nodes, contexts in which they matter.
        searched: nodes for which no context was found in which they matter.
    """

    functions: SearchFunctions
    ranking: Sequence[Node]
    seed: int
    on_decision: OnDecision
    faults_of: dict[NodeSet, Faults] = field(default_factory=dict)
    contexts: dict[Node, list[NodeSet]] = field(default_factory=dict)
    searched: set[Node] = field(default_factory=set)

    def run(self, start: NodeSet) -> NodeSet:
        """Add nodes, and return the best set seen.

        Raises:
            BudgetError: if the budget ends; `best` is the best set by then.
        """
        circuit = start
        while True:
            faults = self.examine(circuit)
            if faults.severity(WITH_MARGIN) == 0:
                break
            proposals = self._propose(circuit, faults)
            proposal = next((p for p in proposals if p.circuit not in self.faults_of), None)
            if proposal is None:
                break
            if len(self.faults_of) >= MAX_EXAMINED_SETS:
                self.on_decision(_stop_at_limit())
                break
            self.on_decision(proposal.decision)
            for node, ablated in proposal.behind.items():
                self.contexts.setdefault(node, []).append(frozenset({ablated}))
            circuit = proposal.circuit
        return self.best

    def run_silently(self, start: NodeSet) -> NodeSet:
        """Mend a set without telling the journal.

        Raises:
            BudgetError: if the budget ends.
        """
        silent = replace(self, on_decision=ignore_decision, faults_of={})
        mended = silent.run(start)
        self.faults_of |= silent.faults_of
        return mended

    def examine(self, circuit: NodeSet) -> Faults:
        """Return what is wrong with a set by (a) to (c)."""
        if circuit not in self.faults_of:
            self.faults_of[circuit] = find_faults(self.functions, circuit, self.seed)
        return self.faults_of[circuit]

    @property
    def best(self) -> NodeSet:
        """The set with the fewest faults of those examined; among equals the smallest."""
        return min(
            self.faults_of,
            key=lambda nodes: (self.faults_of[nodes].order, len(nodes), sorted(nodes)),
        )

    def _propose(self, circuit: NodeSet, faults: Faults) -> Iterator[Proposal]:
        """Yield what to try next, the most pressing first."""
        outside = [node for node in self.ranking if node not in circuit]
        missing = {v: gap for v, gap in faults.gap_out.items() if gap > WITH_MARGIN.gap_out}
        yield from _propose_missing(circuit, missing)
        yield from self._propose_backups(circuit, faults.gap_in, outside)
        if faults.excess(WITH_MARGIN) > 0 and outside:
            yield from self._propose_repairs(circuit, faults, outside)

    def _propose_backups(
        self, circuit: NodeSet, gaps: Mapping[Node, float], outside: Sequence[Node]
    ) -> Iterator[Proposal]:
        """Yield the set with what closes all gaps, then the sets with what closes one of them.

        Of a large circuit, only gaps beyond the bound itself are closed. In a long tail it would
        take dozens of nodes to gain the margin.
        """
        bounds = WITH_MARGIN if len(circuit) <= MAX_SMALL_CIRCUIT else PLAIN
        faulty = {u: gap for u, gap in gaps.items() if gap > bounds.gap_in}
        if not faulty or not outside:
            return
        yield from _add_backups(circuit, find_all_backups(self.functions, circuit, faulty, outside))
        for node in sorted(faulty, key=lambda u: (-round(faulty[u], ROUNDING), u)):
            alone = find_all_backups(self.functions, circuit, {node: faulty[node]}, outside)
            yield from _add_backups(circuit, alone)

    def _propose_repairs(
        self, circuit: NodeSet, faults: Faults, outside: Sequence[Node]
    ) -> Iterator[Proposal]:
        """Yield the sets with one outside node more that miss (a) and (b) by less."""
        tried = [circuit | {v} for v in outside[:MAX_REPAIRS]]
        screened = measure_fits(self.functions, tried, "repair", screen=True)
        order = sorted(
            range(len(tried)),
            key=lambda n: (round(total_excess(screened[n], WITH_MARGIN), ROUNDING), n),
        )[:MAX_EXACT_REPAIRS]
        fits = measure_fits(self.functions, [tried[n] for n in order], "repair")
        excess = {n: total_excess(fit, WITH_MARGIN) for n, fit in zip(order, fits, strict=True)}
        before = faults.excess(WITH_MARGIN)
        for n in sorted(order, key=lambda n: (round(excess[n], ROUNDING), n)):
            if excess[n] < before - 1e-9:
                measured = {"excess": before, "with": excess[n]}
                why = "the circuit is not faithful and necessary without it"
                yield Proposal(tried[n], Decision(measured, f"add {outside[n]}", why))


def _add_backups(circuit: NodeSet, backups: Backups) -> Iterator[Proposal]:
    """Yield the set with the backups, if there are any."""
    if not backups.nodes:
        return
    behind = sorted({str(node) for node in backups.behind.values()})
    gap = max(backups.gaps.values())
    decision = Decision(
        {"gap": gap, "behind": ", ".join(behind)},
        f"add {format_nodes(backups.nodes)}",
        f"without {', '.join(behind)} the model still works by another way (gap {gap:.3f})",
    )
    yield Proposal(circuit.union(backups.nodes), decision, backups.behind)


def _propose_missing(circuit: NodeSet, missing: dict[Node, float]) -> Iterator[Proposal]:
    """Yield the sets with the outside nodes that change f: with all of them, then with each."""
    by_gap = sorted(missing, key=lambda v: (-round(missing[v], ROUNDING), v))
    choices = ([by_gap] if len(by_gap) > 1 else []) + [[node] for node in by_gap]
    for added in choices:
        names = format_nodes(added)
        gaps = {str(node): missing[node] for node in added}
        why = f"each changes f by more than {WITH_MARGIN.gap_out} when it is added (condition c)"
        yield Proposal(circuit | set(added), Decision(gaps, f"add {names}", why))


def _stop_at_limit() -> Decision:
    return Decision(
        {"sets looked at": MAX_EXAMINED_SETS},
        "stop: no end in sight",
        f"{MAX_EXAMINED_SETS} sets were examined, and each led to another",
        stopped="limit",
    )
