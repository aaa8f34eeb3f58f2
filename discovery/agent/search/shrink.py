"""Drops nodes as long as no condition (a) to (d) gets worse.

Mending follows one fault at a time. It may add two nodes for two faults, and later a third node
that alone would have mended both. Each of the three is then needed in some context, so (d) drops
none of them, and yet the circuit meets every condition without the first two. A beam search finds
such sets: it follows the best sets of each size.
"""

from __future__ import annotations

from collections.abc import Sequence

from discovery.agent.search.faults import Faults, Order, add_drop_shares, share_of_margin
from discovery.agent.search.fit import (
    MAX_SMALL_CIRCUIT,
    PLAIN,
    ROUNDING,
    WITH_MARGIN,
    FitByAblation,
    measure_fits,
    measure_passing,
    total_distance,
)
from discovery.agent.search.mend import Mending
from discovery.methods.ablation import NodeSet

BEAM_WIDTH = 5  # sets of each size that are followed
MAX_SCREENED_EXCESS = 0.15  # a set that misses (a) and (b) by more on a few pairs is out


def shrink(mending: Mending, circuit: NodeSet) -> NodeSet:
    """Drop one node after the other while (a) and (b) hold as points and no fault grows.

    Args:
        mending: gives f, and examines sets.
        circuit: the set to begin with.

    Returns:
        Of the smallest sets that were reached, the one whose f is closest to 1.

    Raises:
        BudgetError: if the budget ends.
    """
    if len(circuit) > MAX_SMALL_CIRCUIT:
        return circuit
    best = circuit
    allowed = examine_all(mending, circuit).order
    beam = [circuit]
    while beam := _smaller_sets(mending, beam, allowed):
        best = beam[0]
    return best


def examine_all(mending: Mending, circuit: NodeSet) -> Faults:
    """Return what is wrong with a set by (a) to (d)."""
    faults = mending.examine(circuit)
    if not faults.drop_shares:
        faults = add_drop_shares(
            mending.functions, circuit, faults, mending.contexts, mending.searched
        )
        mending.faults_of[circuit] = faults
        for node, drop in faults.drops.items():
            if drop.context:
                mending.contexts.setdefault(node, []).append(drop.context)
            if drop.share < PLAIN.drop_share and len(circuit) > MAX_SMALL_CIRCUIT:
                mending.searched.add(node)
    return faults


def _smaller_sets(
    mending: Mending,
    beam: Sequence[NodeSet],
    allowed: Order,
) -> list[NodeSet]:
    """Return the best sets with one node less, the closest to f = 1 first.

    They meet (a) and (b) as points with a margin, and their faults are no more severe than allowed.
    """
    parents: dict[NodeSet, list[NodeSet]] = {}
    for nodes in beam:
        for node in nodes if len(nodes) > 1 else ():
            parents.setdefault(nodes - {node}, []).append(nodes)
    in_order = sorted(parents, key=sorted)
    fits = measure_passing(mending.functions, in_order, "shrink", MAX_SCREENED_EXCESS)
    of_beam = dict(zip(beam, measure_fits(mending.functions, beam, "shrink"), strict=True))
    by_distance = sorted(fits, key=lambda nodes: round(total_distance(fits[nodes]), ROUNDING))
    found: list[NodeSet] = []
    for nodes in by_distance:
        gap = max(_largest_change(fits[nodes], of_beam[parent]) for parent in parents[nodes])
        if _least_order(gap) > allowed or mending.examine(nodes).order > allowed:
            continue
        if examine_all(mending, nodes).order <= allowed:
            found.append(nodes)
        if len(found) == BEAM_WIDTH:
            break
    return found


def _largest_change(fit: FitByAblation, other: FitByAblation) -> float:
    """Return by how much f(C) differs, the larger of both ablations."""
    return max(abs(part.faithfulness - other[a].faithfulness) for a, part in fit.items())


def _least_order(gap: float) -> Order:
    """Return the least severe faults that a set can have if one node outside changes f by so much.

    It spares examining most sets: a node that changes f by more than (c) allows cannot go.
    """
    used = share_of_margin(gap, WITH_MARGIN.gap_out, PLAIN.gap_out)
    return round(max(gap - PLAIN.gap_out, 0.0), 6), 0, round(used, 6)
