"""Condition (e): is this circuit better than others of its size?

Size-matched alternatives have as many heads and as many MLPs. Layer-matched ones have as many of
each in every layer; this is the harder control, since late layers alone carry much of any
behaviour. An alternative is as good only if it is as faithful *and* is itself necessary and
complete: a circuit with one node exchanged for an irrelevant one is no rival.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence

from discovery.evaluation import thresholds
from discovery.evaluation.completeness import (
    choose_outside_nodes,
    measure_gaps_in,
    measure_gaps_out,
)
from discovery.evaluation.faithfulness import Faithfulness, SetFunction
from discovery.graph import Control, RandomControls
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

NodeGroup = tuple[list[Node], int]
"""The nodes of one kind (and layer), and how many of them a set takes."""


def measure_random_controls(
    f: Faithfulness, circuit: NodeSet, ranking: Sequence[Node], seed: int
) -> RandomControls | None:
    """Compare the circuit with size-matched and layer-matched alternatives; None if f is null.

    Args:
        f: f on one split under one ablation.
        circuit: the circuit.
        ranking: all nodes, largest screened effect first.
        seed: of what is drawn at random.
    """
    if not f.is_defined:
        return None
    return RandomControls(
        size=find_rivals(f, circuit, ranking, seed, by_layer=False)[1],
        layer=find_rivals(f, circuit, ranking, seed, by_layer=True)[1],
    )


def find_rivals(
    f: SetFunction, circuit: NodeSet, ranking: Sequence[Node], seed: int, *, by_layer: bool
) -> tuple[list[NodeSet], Control | None]:
    """Find the alternatives that are as good as the circuit.

    Args:
        f: f under one ablation.
        circuit: the circuit.
        ranking: all nodes, largest screened effect first.
        seed: of what is drawn at random.
        by_layer: whether alternatives match the circuit layer by layer, or only in size.

    Returns:
        The alternatives that are as good, and the comparison for the record; None if there is no
        alternative.
    """
    groups = _group_nodes(f, circuit, by_layer=by_layer)
    alternatives, n_possible = draw_alternatives(groups, circuit, seed)
    if not alternatives:
        return [], None
    pairs = min(thresholds.MAX_ALTERNATIVE_PAIRS, f.n_pairs)
    values = f([circuit, *alternatives], "random circuits", pairs)
    max_distance = abs(1 - float(values[0])) + thresholds.FAITHFULNESS_TIE
    as_faithful = [
        nodes
        for nodes, value in zip(alternatives, values[1:].tolist(), strict=True)
        if abs(1 - value) <= max_distance
    ]
    rivals = [nodes for nodes in as_faithful if _meets_b_and_c(f, nodes, ranking, seed, pairs)]
    return rivals, Control(
        n=len(alternatives),
        n_possible=n_possible,
        as_good=len(rivals),
        p=(1 + len(rivals)) / (1 + len(alternatives)),
    )


def draw_alternatives(
    groups: Sequence[NodeGroup], circuit: NodeSet, seed: int
) -> tuple[list[NodeSet], int]:
    """Draw distinct sets other than the circuit that take as many nodes from each group.

    Returns:
        All such sets if there are at most 200, else 200 of them at random; and how many there are.
    """
    n_possible = math.prod(math.comb(len(nodes), count) for nodes, count in groups) - 1
    if n_possible <= thresholds.MAX_ALTERNATIVES:
        return [nodes for nodes in _enumerate_sets(groups) if nodes != circuit], n_possible
    generator = random.Random(f"controls-{seed}")
    drawn: dict[NodeSet, None] = {}
    while len(drawn) < thresholds.MAX_ALTERNATIVES:
        alternative = frozenset(
            node for nodes, count in groups for node in generator.sample(nodes, count)
        )
        if alternative != circuit:
            drawn[alternative] = None
    return list(drawn), n_possible


def beats_alternatives(control: Control) -> bool:
    """Whether the circuit beats these alternatives.

    With fewer than 19 alternatives no p can reach 0.05, so none of them may be as good.
    """
    if (control.n or 0) < thresholds.MIN_ALTERNATIVES_FOR_P:
        return control.as_good == 0
    return (control.p if control.p is not None else 1.0) <= thresholds.ALPHA


def _group_nodes(f: SetFunction, circuit: NodeSet, *, by_layer: bool) -> list[NodeGroup]:
    """Group the universe by kind (and layer), and count how many of each group the circuit has."""

    def group_of(node: Node) -> tuple[str, int]:
        return node.kind, (node.layer or 0) if by_layer else 0

    members: dict[tuple[str, int], list[Node]] = {}
    for node in sorted(f.everything):
        members.setdefault(group_of(node), []).append(node)
    counts = Counter(group_of(node) for node in circuit)
    return [(nodes, counts[group]) for group, nodes in sorted(members.items())]


def _enumerate_sets(groups: Sequence[NodeGroup]) -> Iterator[NodeSet]:
    choices = (itertools.combinations(nodes, count) for nodes, count in groups)
    for parts in itertools.product(*choices):
        yield frozenset(itertools.chain.from_iterable(parts))


def _meets_b_and_c(
    f: SetFunction, nodes: NodeSet, ranking: Sequence[Node], seed: int, pairs: int
) -> bool:
    """Whether an alternative too is necessary (b) and complete (c), by point values."""
    low, high = thresholds.KNOCKOUT_BAND
    if not low <= float(f([f.everything - nodes], "random circuits", pairs)[0]) <= high:
        return False
    if max(measure_gaps_in(f, nodes, pairs).values(), default=0.0) > thresholds.MAX_GAP_IN:
        return False
    outside, _ = choose_outside_nodes(f, nodes, ranking, seed)
    gaps_out = measure_gaps_out(f, nodes, outside, pairs)
    return max(gaps_out.values(), default=0.0) <= thresholds.MAX_GAP_OUT
