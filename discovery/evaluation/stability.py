"""Condition (f): how much of the circuit do repeated searches choose again?

The plain Jaccard index counts a node that is just above the bound of (d) as much as a node that
carries the behaviour. On other pairs the first one falls below the bound half of the time, although
nothing is wrong with the search. So each node weighs min(1, drop / 2δ): a node just above δ counts
half, and a clearly needed one whole. δ is defined in `minimality.minimal_drop`.
"""

from __future__ import annotations

from collections.abc import Mapping

from discovery.graph import EvidenceAblation
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

WHOLE_WEIGHT_DROPS = 2.0  # a node weighs 1 from this many δ on


def weigh_nodes(
    drops: Mapping[EvidenceAblation, Mapping[Node, float]],
    minimal_drops: Mapping[EvidenceAblation, float],
) -> dict[Node, float]:
    """Return the weight min(1, drop / 2δ) of each node that one search chose.

    A node needs to reach δ under one ablation only, so the ablation under which it weighs more
    counts.

    Args:
        drops: the largest drop of each node under each ablation, by condition (d), in the search
            that chose the node.
        minimal_drops: δ of that search's circuit under each ablation.
    """
    weights: dict[Node, float] = {}
    for ablation, by_node in drops.items():
        whole = WHOLE_WEIGHT_DROPS * minimal_drops[ablation]
        for node, drop in by_node.items():
            weight = min(1.0, drop / whole) if whole > 0 else 1.0
            weights[node] = max(weights.get(node, 0.0), weight)
    return weights


def combine_weights(one: Mapping[Node, float], other: Mapping[Node, float]) -> dict[Node, float]:
    """Return the weights of the nodes of two circuits.

    A node that both searches chose has the larger of its two weights: it is clearly needed if
    either search found that.
    """
    return {node: max(one.get(node, 0.0), other.get(node, 0.0)) for node in sorted({*one, *other})}


def weighted_jaccard(circuit: NodeSet, other: NodeSet, weights: Mapping[Node, float]) -> float:
    """Return the weight of the common nodes over the weight of all nodes of two circuits.

    Args:
        circuit: the reported circuit.
        other: the circuit of a repeated search.
        weights: the weight of each node of both; see `weigh_nodes` and `combine_weights`.

    Returns:
        A number from 0 to 1; 1 if neither circuit has a node that weighs anything.

    Raises:
        KeyError: if a node of either circuit has no weight.
    """
    total = sum(weights[node] for node in sorted(circuit | other))
    common = sum(weights[node] for node in sorted(circuit & other))
    return common / total if total > 0 else 1.0


def plain_jaccard(circuit: NodeSet, other: NodeSet) -> float:
    """Return the number of common nodes over the number of nodes of two circuits.

    It is 1 if both are empty.
    """
    union = circuit | other
    return len(circuit & other) / len(union) if union else 1.0
