"""From a candidate to a circuit: break it, mend it, and keep the best that was seen; discovery pairs only.

Single effects rank nodes well and miss what acts only together: backups, redundant pairs, cancelling twins. So the first set
that is faithful and necessary is only a start. What (c) demands is added: where the model without u does better than the circuit
without u, something outside stands in for u, and is searched for with u out, singly and then in pairs; what changes the circuit by
joining it joins. What no context needs (d) is dropped. Every set must do under both ablations. Where adding and dropping chase
each other, the search turns to its next idea, and in the end the set with the least fault wins, smaller sets first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

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

OnDecision = Callable[[dict[str, object], str, str], None]  # measured, concluded, why
MAX_EXAMINED_SETS = 40  # sets that are examined at most
STOPPED_BY_BUDGET = "stop: the budget is spent"
STOPPED_BY_LIMIT = "stop: no end in sight"
MAX_PAIRED_BACKUPS = 5  # outside nodes that are tried in pairs


@dataclass(frozen=True)
class Faults:
    """What the conditions hold against a set, as points.

    Attributes:
        outside: how far (a) and (b) are missed. gap_in, gap_out: the largest of (c) over ablations, by node.
        needed: the smallest, over ablations, of each node's largest drop (d); only filled where (a) to (c) hold.
    """

    excess: float
    gap_in: Mapping[Node, float]
    gap_out: Mapping[Node, float]
    largest_drops: Mapping[Node, float] = field(default_factory=dict)

    @property
    def incompleteness(self) -> float:
        """By how much (c) is missed, summed over nodes."""
        inside = sum(max(gap - thresholds.MAX_GAP_IN, 0.0) for gap in self.gap_in.values())
        return inside + sum(max(gap - thresholds.MAX_GAP_OUT, 0.0) for gap in self.gap_out.values())

    @property
    def unneeded_nodes(self) -> list[Node]:
        """Nodes that no context needs, the least needed first."""
        return sorted(
            (v for v, drop in self.largest_drops.items() if drop < thresholds.MIN_DROP),
            key=lambda v: (self.largest_drops[v], v),
        )

    @property
    def severity(self) -> tuple[float, int]:
        """Sorts sets by what is wrong with them."""
        return round(self.excess + self.incompleteness, 6), len(self.unneeded_nodes)


def find_faults(both: FaithfulnessByAblation, circuit: NodeSet) -> Faults:
    """Hold (a) to (d) against a set."""
    everything = get_universe(both)
    outside = total_excess(measure_fits(both, [circuit])[0])
    inner = _largest_by_node([measure_gaps_in(f, circuit) for f in both.values()])
    outer = _largest_by_node(
        [measure_gaps_out(f, circuit, sorted(everything - circuit)) for f in both.values()]
    )
    faults = Faults(outside, inner, outer)
    if faults.severity[0] > 0:
        return faults
    drops = [find_largest_drops(f, circuit) for f in both.values()]
    return Faults(
        outside, inner, outer, {node: min(found[node] for found in drops) for node in circuit}
    )


def _largest_by_node(found: Sequence[Mapping[Node, float]]) -> dict[Node, float]:
    return {node: max(gaps[node] for gaps in found) for node in (found[0] if found else {})}


@dataclass(frozen=True)
class Proposal:
    """A set to look at next, and why."""

    circuit: NodeSet
    measured: dict[str, object]
    concluded: str
    why: str


def mend(both: FaithfulnessByAblation, start: NodeSet, on_decision: OnDecision) -> NodeSet:
    """Add and drop until nothing is held against the set, no new idea is left, ROUNDS sets were examined, or the budget is spent.

    Returns the best set seen.
    """
    seen: dict[NodeSet, Faults] = {}
    circuit = start
    try:
        while True:
            seen[circuit] = faults = find_faults(both, circuit)
            idea = next(
                (idea for idea in _propose(both, circuit, faults) if idea.circuit not in seen), None
            )
            if idea is None:
                break
            if len(seen) == MAX_EXAMINED_SETS:
                on_decision(
                    {"sets looked at": MAX_EXAMINED_SETS},
                    STOPPED_BY_LIMIT,
                    f"{MAX_EXAMINED_SETS} sets have been looked at, and each led to another",
                )
                break
            on_decision(idea.measured, idea.concluded, idea.why)
            circuit = idea.circuit
    except BudgetError as spent:
        on_decision({"sets looked at": len(seen)}, STOPPED_BY_BUDGET, spent.cause)
    if not seen:
        return start
    best, last = (
        min(seen, key=lambda made: (seen[made].severity, len(made), sorted(made))),
        next(reversed(seen)),
    )
    if best != last:
        on_decision(
            {"sets looked at": len(seen)},
            f"go back to {names_of(best)}",
            "of the sets looked at the least is held against it",
        )
    return best


def names_of(nodes: Iterable[Node]) -> str:
    """In forward order, for a sentence."""
    return ", ".join(map(str, sorted(nodes)))


def _propose(both: FaithfulnessByAblation, circuit: NodeSet, faults: Faults) -> Iterator[Proposal]:
    """What to try next, the most pressing first."""
    outside = sorted(faults.gap_out)
    if faults.excess > 0 and outside:
        yield from _propose_repairs(both, circuit, faults, outside)
    for node in sorted(outside, key=lambda v: (-round(faults.gap_out[v], 9), v)):
        if (gap := faults.gap_out[node]) > thresholds.MAX_GAP_OUT:
            why = f"putting it in changes f by {gap:.3f} (condition c allows {thresholds.MAX_GAP_OUT})"
            yield Proposal(circuit | {node}, {"gap": gap}, f"add {node}", why)
    for node in sorted(circuit, key=lambda u: (-round(faults.gap_in[u], 9), u)):
        if faults.gap_in[node] > thresholds.MAX_GAP_IN and outside:
            yield from _propose_backups(both, circuit, node, faults.gap_in[node], outside)
    yield from _propose_drops(both, circuit, faults)


def _propose_repairs(
    both: FaithfulnessByAblation, circuit: NodeSet, faults: Faults, outside: Sequence[Node]
) -> Iterator[Proposal]:
    trial = [
        total_excess(fit) for fit in measure_fits(both, [circuit | {v} for v in outside], "repair")
    ]
    for n in sorted(range(len(outside)), key=lambda n: (round(trial[n], 9), outside[n])):
        if trial[n] < faults.excess - 1e-9:
            why = "the circuit is not faithful and necessary without it"
            yield Proposal(
                circuit | {outside[n]},
                {"excess": faults.excess, "with": trial[n]},
                f"add {outside[n]}",
                why,
            )


def _propose_backups(
    both: FaithfulnessByAblation,
    circuit: NodeSet,
    behind: Node,
    gap: float,
    outside: Sequence[Node],
) -> Iterator[Proposal]:
    """Outside nodes, singly and then in pairs, that make the circuit without `behind` do as the model without it does."""
    singles: list[NodeSet] = [frozenset({v}) for v in outside]
    left, moved = _try_backups(both, circuit - {behind}, behind, singles)
    good = sorted(
        (n for n in range(len(singles)) if left[n] < gap - thresholds.MIN_DROP),
        key=lambda n: (round(left[n], 9), outside[n]),
    )
    tried = [(singles[n], left[n]) for n in good if moved[n] >= thresholds.MIN_DROP]
    if not any(rest <= thresholds.MAX_GAP_IN for _, rest in tried):
        first = sorted(range(len(singles)), key=lambda n: (round(left[n], 9), outside[n]))[
            :MAX_PAIRED_BACKUPS
        ]
        pairs = [singles[a] | singles[b] for a, b in itertools.combinations(first, 2)]
        both_left, both_moved = _try_backups(both, circuit - {behind}, behind, pairs)
        order = sorted(range(len(pairs)), key=lambda n: round(both_left[n], 9))
        tried += [
            (pairs[n], both_left[n])
            for n in order
            if both_left[n] <= thresholds.MAX_GAP_IN and both_moved[n] >= thresholds.MIN_DROP
        ]
    for added, rest in tried:
        names = " and ".join(str(node) for node in sorted(added))
        why = f"without {behind} the model still works by another way (gap {gap:.3f}, with {names} {rest:.3f})"
        yield Proposal(
            circuit | added, {"gap": gap, "with": rest, "behind": str(behind)}, f"add {names}", why
        )


def _try_backups(
    both: FaithfulnessByAblation, broken: NodeSet, behind: Node, additions: Sequence[NodeSet]
) -> tuple[list[float], list[float]]:
    """The gap left with each addition (the largest over ablations), and how much it moves f (the smallest)."""
    left, moved = [0.0] * len(additions), [float("inf")] * len(additions)
    for f in both.values():
        target, before, *values = f(
            [f.everything - {behind}, broken, *(broken | added for added in additions)], "backups"
        ).tolist()
        left = [max(old, abs(value - target)) for old, value in zip(left, values, strict=True)]
        moved = [min(old, abs(value - before)) for old, value in zip(moved, values, strict=True)]
    return left, moved


def _propose_drops(
    both: FaithfulnessByAblation, circuit: NodeSet, faults: Faults
) -> Iterator[Proposal]:
    idle = faults.unneeded_nodes
    choices = ([idle] if len(idle) > 1 else []) + [[node] for node in idle]
    made = [(circuit - set(dropped), dropped) for dropped in choices if len(dropped) < len(circuit)]
    for (kept, dropped), fit in zip(
        made, measure_fits(both, [kept for kept, _ in made]), strict=True
    ):
        if total_excess(fit) == 0:
            drops: dict[str, object] = {str(node): faults.largest_drops[node] for node in dropped}
            why = f"in no context does it change f by {thresholds.MIN_DROP} under both ablations (condition d)"
            yield Proposal(kept, drops, f"drop {', '.join(map(str, dropped))}", why)
