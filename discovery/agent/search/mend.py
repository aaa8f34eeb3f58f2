"""From a candidate to a circuit: find its faults, mend them, and keep the best set seen.

Single effects rank nodes well, but they miss what acts only together: backups, redundant pairs,
twins that cancel. So the first faithful and necessary set is only a start. Condition (c) says
what to add. If the model without u does better than the circuit without u, an outside node does
the work of u: it is searched for with u ablated, among single nodes and then among pairs. An
outside node that changes f(C) when it joins is added too. Condition (d) says what to drop: a node
that no context needs. Every set is judged under both ablations. If adding and dropping would lead
back to a set that was already examined, the search takes its next proposal. In the end the set
with the fewest faults wins, and among equals the smallest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from discovery.agent.search.decision import Decision, OnDecision, format_nodes, stop_for_budget
from discovery.agent.search.fit import (
    get_universe,
    measure_fits,
    total_excess,
)
from discovery.errors import BudgetError
from discovery.evaluation import (
    FaithfulnessByAblation,
    find_largest_drops,
    measure_gaps_in,
    measure_gaps_out,
    thresholds,
)
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

MAX_EXAMINED_SETS = 40
MAX_PAIRED_BACKUPS = 5  # outside nodes that are tried in pairs, the best single ones first
ROUNDING = 9  # decimals by which numbers are compared, so that rounding decides no order


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What is wrong with a set by conditions (a) to (d), as points.

    Attributes:
        excess: How far the set misses the bounds of (a) and (b), summed over both ablations.
        gap_in: For each node u of the set, |f(C∖u) − f(U∖u)|, the larger of both ablations (c).
        gap_out: For each node v outside, |f(C∪v) − f(C)|, the larger of both ablations (c).
        largest_drops: For each node of the set, a lower bound on its largest drop (d), the smaller
            of both ablations. It is empty unless (a) to (c) hold.
    """

    excess: float
    gap_in: Mapping[Node, float]
    gap_out: Mapping[Node, float]
    largest_drops: Mapping[Node, float] = field(default_factory=dict)

    @property
    def incompleteness(self) -> float:
        """How far the gaps of (c) exceed their limits, summed over nodes."""
        inside = sum(max(gap - thresholds.MAX_GAP_IN, 0.0) for gap in self.gap_in.values())
        return inside + sum(max(gap - thresholds.MAX_GAP_OUT, 0.0) for gap in self.gap_out.values())

    @property
    def unneeded_nodes(self) -> list[Node]:
        """The nodes that no context needs, the least needed first."""
        return sorted(
            (v for v, drop in self.largest_drops.items() if drop < thresholds.MIN_DROP),
            key=lambda v: (self.largest_drops[v], v),
        )

    @property
    def severity(self) -> tuple[float, int]:
        """What sorts sets by their faults: excess and incompleteness, then unneeded nodes."""
        return round(self.excess + self.incompleteness, 6), len(self.unneeded_nodes)


def find_faults(f_by_ablation: FaithfulnessByAblation, circuit: NodeSet) -> Faults:
    """Check (a) to (d) of a set, as points on discovery pairs.

    Raises:
        BudgetError: If the budget does not reach that far.
    """
    outside = sorted(get_universe(f_by_ablation) - circuit)
    excess = total_excess(measure_fits(f_by_ablation, [circuit])[0])
    gap_in = _largest_by_node([measure_gaps_in(f, circuit) for f in f_by_ablation.values()])
    gap_out = _largest_by_node(
        [measure_gaps_out(f, circuit, outside) for f in f_by_ablation.values()]
    )
    faults = Faults(excess=excess, gap_in=gap_in, gap_out=gap_out)
    if faults.severity[0] > 0:
        return faults
    drops = [find_largest_drops(f, circuit) for f in f_by_ablation.values()]
    smallest = {node: min(by_node[node] for by_node in drops) for node in circuit}
    return Faults(excess=excess, gap_in=gap_in, gap_out=gap_out, largest_drops=smallest)


def _largest_by_node(gaps_by_ablation: Sequence[Mapping[Node, float]]) -> dict[Node, float]:
    nodes = gaps_by_ablation[0] if gaps_by_ablation else {}
    return {node: max(gaps[node] for gaps in gaps_by_ablation) for node in nodes}


@dataclass(frozen=True)
class Proposal:
    """A set to examine next, and the decision that leads to it."""

    circuit: NodeSet
    decision: Decision


def mend(f_by_ablation: FaithfulnessByAblation, start: NodeSet, on_decision: OnDecision) -> NodeSet:
    """Add and drop nodes, and return the best set seen.

    The search ends if a set has no faults, if no proposal is left, if MAX_EXAMINED_SETS were
    examined, or if the budget is spent.
    """
    faults_of: dict[NodeSet, Faults] = {}
    circuit = start
    try:
        while True:
            faults_of[circuit] = faults = find_faults(f_by_ablation, circuit)
            proposals = _propose(f_by_ablation, circuit, faults)
            proposal = next((p for p in proposals if p.circuit not in faults_of), None)
            if proposal is None:
                break
            if len(faults_of) == MAX_EXAMINED_SETS:
                on_decision(_stop_at_limit())
                break
            on_decision(proposal.decision)
            circuit = proposal.circuit
    except BudgetError as fault:
        on_decision(stop_for_budget(fault, {"sets looked at": len(faults_of)}))
    if not faults_of:
        return start
    best = min(faults_of, key=lambda nodes: (faults_of[nodes].severity, len(nodes), sorted(nodes)))
    if best != next(reversed(faults_of)):
        on_decision(
            Decision(
                {"sets looked at": len(faults_of)},
                f"go back to {format_nodes(best)}",
                "it has the fewest faults of the sets that were examined",
            )
        )
    return best


def _stop_at_limit() -> Decision:
    return Decision(
        {"sets looked at": MAX_EXAMINED_SETS},
        "stop: no end in sight",
        f"{MAX_EXAMINED_SETS} sets were examined, and each led to another",
        stopped="limit",
    )


def _propose(
    f_by_ablation: FaithfulnessByAblation, circuit: NodeSet, faults: Faults
) -> Iterator[Proposal]:
    """Yield what to try next, the most pressing first."""
    outside = sorted(faults.gap_out)
    if faults.excess > 0 and outside:
        yield from _propose_repairs(f_by_ablation, circuit, faults, outside)
    for node in sorted(outside, key=lambda v: (-round(faults.gap_out[v], ROUNDING), v)):
        if (gap := faults.gap_out[node]) > thresholds.MAX_GAP_OUT:
            why = f"adding it changes f by {gap:.3f} (condition c allows {thresholds.MAX_GAP_OUT})"
            yield Proposal(circuit | {node}, Decision({"gap": gap}, f"add {node}", why))
    for node in sorted(circuit, key=lambda u: (-round(faults.gap_in[u], ROUNDING), u)):
        if faults.gap_in[node] > thresholds.MAX_GAP_IN and outside:
            yield from _propose_backups(f_by_ablation, circuit, node, faults.gap_in[node], outside)
    yield from _propose_drops(f_by_ablation, circuit, faults)


def _propose_repairs(
    f_by_ablation: FaithfulnessByAblation,
    circuit: NodeSet,
    faults: Faults,
    outside: Sequence[Node],
) -> Iterator[Proposal]:
    """Yield the sets with one outside node more that miss (a) and (b) by less."""
    fits = measure_fits(f_by_ablation, [circuit | {v} for v in outside], "repair")
    excess = [total_excess(fit) for fit in fits]
    for n in sorted(range(len(outside)), key=lambda n: (round(excess[n], ROUNDING), outside[n])):
        if excess[n] < faults.excess - 1e-9:
            measured = {"excess": faults.excess, "with": excess[n]}
            why = "the circuit is not faithful and necessary without it"
            yield Proposal(circuit | {outside[n]}, Decision(measured, f"add {outside[n]}", why))


def _propose_backups(
    f_by_ablation: FaithfulnessByAblation,
    circuit: NodeSet,
    ablated: Node,
    gap: float,
    outside: Sequence[Node],
) -> Iterator[Proposal]:
    """Yield the sets with backups of the ablated node: single outside nodes, then pairs.

    A backup makes the circuit without the node do as the model without it does.
    """
    broken = circuit - {ablated}
    singles: list[NodeSet] = [frozenset({v}) for v in outside]
    remaining, moved = _try_backups(f_by_ablation, broken, ablated, singles)
    by_gap = sorted(range(len(singles)), key=lambda n: (round(remaining[n], ROUNDING), outside[n]))
    backups = [
        (singles[n], remaining[n])
        for n in by_gap
        if remaining[n] < gap - thresholds.MIN_DROP and moved[n] >= thresholds.MIN_DROP
    ]
    if not any(rest <= thresholds.MAX_GAP_IN for _, rest in backups):
        best = by_gap[:MAX_PAIRED_BACKUPS]
        pairs = [singles[a] | singles[b] for a, b in itertools.combinations(best, 2)]
        remaining, moved = _try_backups(f_by_ablation, broken, ablated, pairs)
        backups += [
            (pairs[n], remaining[n])
            for n in sorted(range(len(pairs)), key=lambda n: round(remaining[n], ROUNDING))
            if remaining[n] <= thresholds.MAX_GAP_IN and moved[n] >= thresholds.MIN_DROP
        ]
    for added, rest in backups:
        names = " and ".join(str(node) for node in sorted(added))
        why = (
            f"without {ablated} the model still works by another way "
            f"(gap {gap:.3f}, with {names} {rest:.3f})"
        )
        measured = {"gap": gap, "with": rest, "behind": str(ablated)}
        yield Proposal(circuit | added, Decision(measured, f"add {names}", why))


def _try_backups(
    f_by_ablation: FaithfulnessByAblation,
    broken: NodeSet,
    ablated: Node,
    additions: Sequence[NodeSet],
) -> tuple[list[float], list[float]]:
    """Measure what each addition does for the circuit without the ablated node.

    Returns:
        The gap that remains with each addition (the larger of both ablations), and how much the
        addition moves f (the smaller of both).
    """
    remaining = [0.0] * len(additions)
    moved = [float("inf")] * len(additions)
    for f in f_by_ablation.values():
        mended = [broken | added for added in additions]
        target, before, *values = f([f.everything - {ablated}, broken, *mended], "backups").tolist()
        remaining = [max(old, abs(v - target)) for old, v in zip(remaining, values, strict=True)]
        moved = [min(old, abs(v - before)) for old, v in zip(moved, values, strict=True)]
    return remaining, moved


def _propose_drops(
    f_by_ablation: FaithfulnessByAblation, circuit: NodeSet, faults: Faults
) -> Iterator[Proposal]:
    """Yield the sets without the unneeded nodes: without all of them, then without each one."""
    unneeded = faults.unneeded_nodes
    choices = ([unneeded] if len(unneeded) > 1 else []) + [[node] for node in unneeded]
    choices = [dropped for dropped in choices if len(dropped) < len(circuit)]
    fits = measure_fits(f_by_ablation, [circuit - set(dropped) for dropped in choices])
    for dropped, fit in zip(choices, fits, strict=True):
        if total_excess(fit) == 0:
            drops = {str(node): faults.largest_drops[node] for node in dropped}
            why = (
                f"in no context does it change f by {thresholds.MIN_DROP} under both ablations "
                "(condition d)"
            )
            concluded = f"drop {', '.join(map(str, dropped))}"
            yield Proposal(circuit - set(dropped), Decision(drops, concluded, why))
