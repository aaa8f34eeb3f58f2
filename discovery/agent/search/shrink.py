"""Drops nodes as long as no condition (a) to (d) gets worse.

Mending follows one fault at a time. It may add two nodes for two faults, and later a third node
that alone would have mended both. Each of the three is then needed in some context, so (d) drops
none of them, and yet the circuit meets every condition without the first two. A beam search finds
such sets: it follows the best sets of each size.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from discovery.agent.search.decision import Decision, OnDecision, format_nodes, stop_for_budget
from discovery.agent.search.fit import (
    measure_fits,
    total_distance,
    total_excess,
)
from discovery.agent.search.mend import ROUNDING, find_faults
from discovery.errors import BudgetError
from discovery.evaluation import FaithfulnessByAblation, thresholds
from discovery.methods.ablation import NodeSet

BEAM_WIDTH = 5  # sets of each size that are followed


def shrink(
    f_by_ablation: FaithfulnessByAblation, circuit: NodeSet, on_decision: OnDecision
) -> NodeSet:
    """Drop one node after the other while (a) and (b) hold as points and no fault grows.

    Returns:
        Of the smallest sets that were reached, the one whose f is closest to 1. If the budget ends
        before that, the best of the smallest sets reached by then.
    """
    best = circuit
    try:
        allowed = find_faults(f_by_ablation, circuit).severity
        beam = [circuit]
        while beam := _smaller_sets(f_by_ablation, beam, allowed):
            best = beam[0]
    except BudgetError as fault:
        on_decision(stop_for_budget(fault))
    if best != circuit:
        on_decision(
            Decision(
                {"nodes": len(best)},
                f"leave out {format_nodes(circuit - best)}",
                "what is left has no more faults by (a) to (d)",
            )
        )
    return best


def _smaller_sets(
    f_by_ablation: FaithfulnessByAblation, beam: Sequence[NodeSet], allowed: tuple[float, int]
) -> list[NodeSet]:
    """Return the best sets with one node less, the closest to f = 1 first.

    They meet (a) and (b) as points, and their faults are no more severe than allowed.
    """
    smaller = sorted(
        {nodes - {node} for nodes in beam if len(nodes) > 1 for node in nodes}, key=sorted
    )
    if not smaller:
        return []
    low, high = thresholds.FAITHFULNESS_BAND
    faithfulness = [f(smaller, "shrink").tolist() for f in f_by_ablation.values()]
    faithful = [
        nodes
        for nodes, *values in zip(smaller, *faithfulness, strict=True)
        if all(low <= value <= high for value in values)
    ]
    fits = dict(zip(faithful, measure_fits(f_by_ablation, faithful, "shrink"), strict=True))
    by_distance = sorted(
        (nodes for nodes in faithful if total_excess(fits[nodes]) == 0),
        key=lambda nodes: round(total_distance(fits[nodes]), ROUNDING),
    )
    no_worse = (
        nodes for nodes in by_distance if find_faults(f_by_ablation, nodes).severity <= allowed
    )
    return list(itertools.islice(no_worse, BEAM_WIDTH))
