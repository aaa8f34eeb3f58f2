"""Finding the candidate: a starting set from single effects, mended until the conditions hold on discovery pairs.

Single effects rank nodes well and miss what acts only together: backups, redundant pairs, cancelling twins. So the first set
that is faithful and necessary is only a start. What (c) demands is then added: where the model without u does better than the circuit without u,
something outside stands in for u, and is searched for with u out; what changes the circuit when it joins, joins. What no context
needs (d) is dropped. Every set is measured under both ablations and must do under both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from discovery.evaluation import Faithfulness, Resampled, contexts, gaps_in, gaps_out, thresholds
from discovery.graph import CurvePoint, EvidenceAblation
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

Both = Mapping[EvidenceAblation, Faithfulness] | Mapping[EvidenceAblation, Resampled]
Say = Callable[[dict[str, object], str, str], None]  # measured, concluded, why
ROUNDS = 40


@dataclass(frozen=True)
class Fit:
    """f(C) and f(U∖C) of a set under one ablation."""

    kept: float
    knocked: float

    @property
    def holds(self) -> bool:
        """Whether (a) and (b) hold as points."""
        low, high = thresholds.FAITHFUL
        return low <= self.kept <= high and abs(self.knocked) <= thresholds.NECESSARY[1]

    @property
    def excess(self) -> float:
        """How far outside the bounds, summed."""
        low, high = thresholds.FAITHFUL
        return max(low - self.kept, self.kept - high, 0.0) + max(abs(self.knocked) - thresholds.NECESSARY[1], 0.0)


def fits(both: Both, sets: Sequence[NodeSet], label: str = "candidates") -> list[dict[EvidenceAblation, Fit]]:
    """(a) and (b) of several sets, batched."""
    values = {}
    for ablation, f in both.items():
        found = f([s for made in sets for s in (made, f.everything - made)], label).tolist()
        values[ablation] = [Fit(found[2 * n], found[2 * n + 1]) for n in range(len(sets))]
    return [{ablation: values[ablation][n] for ablation in both} for n in range(len(sets))]


def holds(fit: dict[EvidenceAblation, Fit]) -> bool:
    """Under every ablation."""
    return all(part.holds for part in fit.values())


def excess(fit: dict[EvidenceAblation, Fit]) -> float:
    """Over all ablations."""
    return sum(part.excess for part in fit.values())


def curve(both: Both, ranking: Sequence[Node]) -> tuple[list[CurvePoint], int | None]:
    """Faithfulness of the ranking's first k nodes, and the smallest k at which (a) and (b) hold under both ablations."""
    prefixes = [frozenset(ranking[:k]) for k in range(len(ranking) + 1)]
    found = fits(both, prefixes, "faithfulness against size")
    names = [str(node) for node in ranking]
    points = [
        CurvePoint(ablation=ablation, size=k, nodes=tuple(names[:k]), faithfulness=fit[ablation].kept)
        for ablation in both
        for k, fit in enumerate(found)
    ]
    smallest = next((k for k, fit in enumerate(found) if k and holds(fit)), None)
    return points, smallest


def smallest_size(both: Both, ranking: Sequence[Node]) -> int | None:
    """The smallest size at which (a) and (b) hold, looking no further than it."""
    for size in range(1, len(ranking) + 1):
        if holds(fits(both, [frozenset(ranking[:size])], "faithfulness against size")[0]):
            return size
    return None


def start_from(size: int | None, ranking: Sequence[Node]) -> NodeSet:
    """The curve's set of that size; where no size holds, the whole universe."""
    return frozenset(ranking if size is None else ranking[:size])


def mend(both: Both, start: NodeSet, say: Say) -> NodeSet:
    """Add what the conditions demand and drop what they reject, until nothing changes."""
    circuit, seen = start, {start}
    for _ in range(ROUNDS):
        made = _add(both, circuit, say) or _drop(both, circuit, say)
        if made is None or made in seen:
            break
        circuit = made
        seen.add(made)
    return circuit


def _add(both: Both, circuit: NodeSet, say: Say) -> NodeSet | None:
    """One node that (a), (b) or (c) demands, or None."""
    outside = sorted(next(iter(both.values())).everything - circuit)
    if not outside:
        return None
    now = fits(both, [circuit])[0]
    if not holds(now):
        trial = fits(both, [circuit | {v} for v in outside], "repair")
        best = min(range(len(outside)), key=lambda n: (round(excess(trial[n]), 9), outside[n]))
        if excess(trial[best]) < excess(now) - 1e-9:
            say({"excess": excess(now), "with": excess(trial[best])}, f"add {outside[best]}", "the circuit is not faithful and necessary without it")
            return circuit | {outside[best]}
    missing = _left_out(both, circuit, outside)
    if missing is not None:
        node, gap = missing
        say({"gap": gap}, f"add {node}", f"putting it in changes f by {gap:.3f} (condition c allows {thresholds.GAP_OUT})")
        return circuit | {node}
    backup = _backup(both, circuit, outside)
    if backup is not None:
        node, behind, before, after = backup
        why = f"without {behind} the model still works by another way (gap {before:.3f}, with {node} {after:.3f})"
        say({"gap": before, "with": after, "behind": str(behind)}, f"add {node}", why)
        return circuit | {node}
    return None


def _left_out(both: Both, circuit: NodeSet, outside: Sequence[Node]) -> tuple[Node, float] | None:
    worst = {v: max(gaps[v] for gaps in (gaps_out(f, circuit, outside) for f in both.values())) for v in outside}
    node = max(sorted(worst), key=lambda v: round(worst[v], 9))
    return (node, worst[node]) if worst[node] > thresholds.GAP_OUT else None


def _backup(both: Both, circuit: NodeSet, outside: Sequence[Node]) -> tuple[Node, Node, float, float] | None:
    """The outside node that best explains the largest gap left by a node of the circuit; pairs where no single one helps."""
    gaps = {ablation: gaps_in(f, circuit) for ablation, f in both.items()}
    worst = {u: max(found[u] for found in gaps.values()) for u in circuit}
    behind = max(sorted(worst), key=lambda u: round(worst[u], 9), default=None)
    if behind is None or worst[behind] <= thresholds.GAP_IN:
        return None
    left = {v: 0.0 for v in outside}
    for f in both.values():
        target = float(f([f.everything - {behind}])[0])
        values = f([(circuit - {behind}) | {v} for v in outside], "backups").tolist()
        for v, value in zip(outside, values, strict=True):
            left[v] = max(left[v], abs(value - target))
    node = min(sorted(left), key=lambda v: round(left[v], 9))
    return (node, behind, worst[behind], left[node]) if left[node] < worst[behind] - thresholds.DROP else None


def _drop(both: Both, circuit: NodeSet, say: Say) -> NodeSet | None:
    """The circuit without what no context needs; one at a time where all at once breaks it."""
    needed: dict[Node, float] = {}
    for f in both.values():
        for node, (_, drop) in contexts(f, circuit).items():
            needed[node] = min(needed.get(node, drop), drop)
    idle = sorted((node for node in circuit if needed[node] < thresholds.DROP), key=lambda node: (needed[node], node))
    if not idle:
        return None
    together = circuit - set(idle)
    for made, dropped in ((together, idle), (circuit - {idle[0]}, idle[:1])):
        if made and holds(fits(both, [made])[0]):
            drops = {str(node): needed[node] for node in dropped}
            say({"drops": drops}, f"drop {', '.join(map(str, dropped))}", f"in no context does it change f by {thresholds.DROP} (condition d)")
            return made
    return None
