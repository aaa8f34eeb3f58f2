"""Condition (c): the circuit leaves nothing out and carries nothing along.

This is the completeness of Wang et al. (2023, arXiv 2211.00593), in single steps. Taking a node
out must hurt the circuit as much as it hurts the model; if not, something outside backs it up.
Putting a node in must change nothing; if it does, something that matters was left out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from discovery.evaluation import thresholds
from discovery.evaluation.faithfulness import Faithfulness, SetFunction
from discovery.graph import Completeness
from discovery.methods.ablation import NodeSet
from discovery.sites import Node


def measure_gaps_in(
    f: SetFunction, circuit: NodeSet, pairs: int | None = None
) -> dict[Node, float]:
    """Return |f(C∖u) − f(U∖u)| for every u in C, over all pairs or the first so many."""
    nodes = sorted(circuit)
    circuit_without = [circuit - {u} for u in nodes]
    model_without = [f.everything - {u} for u in nodes]
    values = f([*circuit_without, *model_without], "completeness", pairs)
    n_nodes = len(nodes)
    return {u: abs(float(values[n] - values[n_nodes + n])) for n, u in enumerate(nodes)}


def measure_gaps_out(
    f: SetFunction, circuit: NodeSet, outside: Sequence[Node], pairs: int | None = None
) -> dict[Node, float]:
    """Return |f(C∪v) − f(C)| for each v in `outside`, over all pairs or the first so many."""
    values = f([circuit, *(circuit | {v} for v in outside)], "completeness", pairs)
    return {v: abs(float(values[n + 1] - values[0])) for n, v in enumerate(outside)}


def choose_outside_nodes(
    f: SetFunction, circuit: NodeSet, ranking: Sequence[Node], seed: int
) -> tuple[list[Node], str | None]:
    """Choose which nodes outside the circuit are put in.

    Of at most 64 nodes all are, of more the 32 that rank highest and 32 at random.

    Args:
        f: gives the universe.
        circuit: the circuit.
        ranking: all nodes, largest screened effect first.
        seed: of the random nodes.

    Returns:
        The nodes, and how they were chosen; None if all are taken.
    """
    outside = sorted(f.everything - circuit)
    if len(outside) <= thresholds.MAX_OUTSIDE_NODES:
        return outside, None
    is_outside = set(outside)
    ranked = [node for node in ranking if node in is_outside][: thresholds.N_OUTSIDE_BY_RANK]
    rest = [node for node in outside if node not in ranked]
    drawn = random.Random(f"completeness-{seed}").sample(rest, thresholds.N_OUTSIDE_AT_RANDOM)
    how_chosen = f"the {len(ranked)} of largest screened effect and {len(drawn)} at random"
    return sorted([*ranked, *drawn]), how_chosen


def measure_completeness(
    f: Faithfulness, circuit: NodeSet, ranking: Sequence[Node], seed: int
) -> Completeness | None:
    """Measure the largest gap inside the circuit and the largest outside; None if f is null.

    Args:
        f: f on one split under one ablation.
        circuit: the circuit.
        ranking: all nodes, largest screened effect first.
        seed: of the nodes outside that are chosen at random.
    """
    if not f.is_defined:
        return None
    outside, how_chosen = choose_outside_nodes(f, circuit, ranking, seed)
    gaps_in = measure_gaps_in(f, circuit)
    gaps_out = measure_gaps_out(f, circuit, outside)
    worst_in = max(gaps_in, key=lambda node: gaps_in[node], default=None)
    worst_out = max(gaps_out, key=lambda node: gaps_out[node], default=None)
    return Completeness(
        max_gap_in=0.0 if worst_in is None else gaps_in[worst_in],
        node_in=None if worst_in is None else str(worst_in),
        max_gap_out=0.0 if worst_out is None else gaps_out[worst_out],
        node_out=None if worst_out is None else str(worst_out),
        n_out=len(outside),
        n_out_possible=len(f.everything - circuit),
        chosen=how_chosen,
    )


def is_complete(completeness: Completeness) -> bool:
    """Whether condition (c) holds, by point values; a gap that was not measured counts as 0."""
    gap_in = completeness.max_gap_in or 0.0
    gap_out = completeness.max_gap_out or 0.0
    return gap_in <= thresholds.MAX_GAP_IN and gap_out <= thresholds.MAX_GAP_OUT
