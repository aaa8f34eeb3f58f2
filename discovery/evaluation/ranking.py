"""How nodes are ranked: by the effect that each has alone.

One direction alone misses an OR gate, so noising and denoising are added. The ranking orders a
search and decides nothing: a node that needs another one shows no effect alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from discovery.evaluation import thresholds
from discovery.evaluation.faithfulness import SetFunction
from discovery.methods.patching import NodeEffects
from discovery.sites import Node

EffectsByNode = Mapping[Node, tuple[float, float]]
"""The effects of each node alone: noising, denoising."""


def sort_by_effect(*effects_by_ablation: EffectsByNode) -> list[Node]:
    """Sort nodes by |noising| + |denoising| of each alone, largest first.

    A node counts with its effects under the first ablation in which either direction reaches 0.02,
    the largest drop that minimality may ask for. A node that reaches it under no ablation counts
    with the mean over ablations: in a large model a long tail of such nodes matters together. Ties
    are in forward order.

    Args:
        effects_by_ablation: the effects under each ablation, the most trusted first.
    """

    def size(node: Node) -> float:
        sums = []
        for effects in effects_by_ablation:
            sizes = [abs(value) if math.isfinite(value) else 0.0 for value in effects[node]]
            sums.append(round(sum(sizes), 9))
            if max(sizes) >= thresholds.MIN_DROP:
                return sums[-1]
        return sum(sums) / len(sums)

    return sorted(effects_by_ablation[0], key=lambda node: (-size(node), node))


def combine_directions(noising: NodeEffects, denoising: NodeEffects) -> EffectsByNode:
    """Combine the effects of single nodes in both directions, by resample ablation."""
    pairs = zip(noising.values.tolist(), denoising.values.tolist(), strict=True)
    return dict(zip(noising.nodes, pairs, strict=True))


def measure_single_ablations(f: SetFunction, nodes: Sequence[Node], label: str) -> EffectsByNode:
    """Measure what f loses if each node alone is ablated.

    Args:
        f: f under one ablation.
        nodes: the nodes.
        label: names the work for progress and errors.

    Returns:
        1 − f without the node as its noising effect. Its denoising effect is not measured and
        counts as 0: with everything else at its mean, one node alone hardly ever does anything.
    """
    values = f([f.everything - {node} for node in nodes], label).tolist()
    return {node: (1 - value, 0.0) for node, value in zip(nodes, values, strict=True)}
