"""Condition (c): the circuit leaves nothing out and carries nothing along (Wang et al. 2023, completeness, in single steps).

Taking a node out must hurt the circuit as much as it hurts the model (else something outside backs it up); putting a node
in must change nothing (else something that matters was left out).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from discovery.evaluation import thresholds
from discovery.evaluation.faithfulness import Faithfulness, ResampledFaithfulness
from discovery.graph import Completeness
from discovery.methods.ablation import NodeSet
from discovery.sites import Node


def measure_gaps_in(
    f: Faithfulness | ResampledFaithfulness, circuit: NodeSet, pairs: int | None = None
) -> dict[Node, float]:
    """|f(C∖u) − f(U∖u)| for every u in C."""
    nodes = sorted(circuit)
    without = f(
        [circuit - {u} for u in nodes] + [f.everything - {u} for u in nodes], "completeness", pairs
    )
    half = len(nodes)
    return {u: abs(float(without[n] - without[half + n])) for n, u in enumerate(nodes)}


def measure_gaps_out(
    f: Faithfulness | ResampledFaithfulness,
    circuit: NodeSet,
    outside: Sequence[Node],
    pairs: int | None = None,
) -> dict[Node, float]:
    """|f(C∪v) − f(C)| for the v given."""
    values = f([circuit, *(circuit | {v} for v in outside)], "completeness", pairs)
    return {v: abs(float(values[n + 1] - values[0])) for n, v in enumerate(outside)}


def choose_outside_nodes(
    f: Faithfulness | ResampledFaithfulness, circuit: NodeSet, ranking: Sequence[Node], seed: int
) -> tuple[list[Node], str | None]:
    """Which nodes outside are put in: all, or of more than 64 the 32 of largest screened effect and 32 at random.

    Args:
        screened: all nodes, those of largest effect first.
    """
    outside = sorted(f.everything - circuit)
    if len(outside) <= thresholds.MAX_OUTSIDE_NODES:
        return outside, None
    first = [node for node in ranking if node in set(outside)][: thresholds.N_OUTSIDE_BY_RANK]
    rest = [node for node in outside if node not in first]
    drawn = random.Random(f"completeness-{seed}").sample(rest, thresholds.N_OUTSIDE_AT_RANDOM)
    return sorted(
        [*first, *drawn]
    ), f"the {len(first)} of largest screened effect and {len(drawn)} at random"


def measure_completeness(
    f: Faithfulness, circuit: NodeSet, ranking: Sequence[Node], seed: int
) -> Completeness | None:
    """The largest gaps; None where f is null."""
    if not f.is_defined:
        return None
    tried, chosen = choose_outside_nodes(f, circuit, ranking, seed)
    inside, out = measure_gaps_in(f, circuit), measure_gaps_out(f, circuit, tried)
    worst_in = max(inside, key=lambda node: inside[node], default=None)
    worst_out = max(out, key=lambda node: out[node], default=None)
    return Completeness(
        max_gap_in=0.0 if worst_in is None else inside[worst_in],
        node_in=None if worst_in is None else str(worst_in),
        max_gap_out=0.0 if worst_out is None else out[worst_out],
        node_out=None if worst_out is None else str(worst_out),
        n_out=len(tried),
        n_out_possible=len(f.everything - circuit),
        chosen=chosen,
    )


def is_complete(found: Completeness) -> bool:
    """Whether (c) holds, as point values."""
    return (found.max_gap_in or 0.0) <= thresholds.MAX_GAP_IN and (
        found.max_gap_out or 0.0
    ) <= thresholds.MAX_GAP_OUT
