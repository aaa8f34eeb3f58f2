"""Of the sets against which no more is held, the smallest: what mending added on its way and no longer needs is left out again.

Mending follows one fault at a time. It can add two nodes for two faults where a third, added later, does for both; each is then needed
in some context (condition d), so none is dropped for being idle, and yet the circuit meets every condition without it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from discovery.agent.search.fit import (
    measure_fits,
    total_distance,
    total_excess,
)
from discovery.agent.search.mend import (
    MAX_PAIRED_BACKUPS,
    STOPPED_BY_BUDGET,
    OnDecision,
    find_faults,
    names_of,
)
from discovery.errors import BudgetError
from discovery.evaluation import FaithfulnessByAblation, thresholds
from discovery.methods.ablation import NodeSet


def shrink(both: FaithfulnessByAblation, circuit: NodeSet, say: OnDecision) -> NodeSet:
    """Leave out one node after the other while what is left is faithful and necessary and no more is held against it.

    The IDEAS best ways are followed. Of the smallest sets the one closest to f = 1; where the budget ends, the smallest by then.
    """
    best = circuit
    try:
        allowed = find_faults(both, circuit).severity
        ways = [circuit]
        while ways := _smaller_sets(both, ways, allowed):
            best = ways[0]
    except BudgetError as spent:
        say({}, STOPPED_BY_BUDGET, spent.cause)
    if best != circuit:
        say(
            {"nodes": len(best)},
            f"leave out {names_of(circuit - best)}",
            "no more is held against what is left by (a) to (d)",
        )
    return best


def _smaller_sets(
    both: FaithfulnessByAblation, ways: Sequence[NodeSet], allowed: tuple[float, int]
) -> list[NodeSet]:
    """The sets with one node less that meet (a) and (b) and against which no more is held than is allowed, the closest to f = 1 first."""
    made = sorted({way - {node} for way in ways if len(way) > 1 for node in way}, key=sorted)
    if not made:
        return []
    low, high = thresholds.FAITHFULNESS_BAND
    kept = [f(made, "shrink").tolist() for f in both.values()]
    faithful = [
        one
        for one, *values in zip(made, *kept, strict=True)
        if all(low <= value <= high for value in values)
    ]
    found = dict(zip(faithful, measure_fits(both, faithful, "shrink"), strict=True))
    close = sorted(
        (one for one in faithful if total_excess(found[one]) == 0),
        key=lambda one: round(total_distance(found[one]), 9),
    )
    return list(
        itertools.islice(
            (one for one in close if find_faults(both, one).severity <= allowed), MAX_PAIRED_BACKUPS
        )
    )
