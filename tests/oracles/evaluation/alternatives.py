"""Condition (e) by its definition: every other set of a circuit's shape, one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from discovery.methods.ablation import NodeSet
from discovery.sites import Node
from tests.discovery.evaluation.synthetic import subsets
from tests.oracles.evaluation.faithfulness import FaithfulnessOracle


def shape(nodes: Iterable[Node], *, by_layer: bool) -> Counter[Any]:
    """Count the nodes of each kind, and of each kind in each layer if `by_layer`."""
    return Counter((node.kind, node.layer if by_layer else None) for node in nodes)


def matched_sets(everything: NodeSet, circuit: NodeSet, *, by_layer: bool) -> list[NodeSet]:
    """List every other set of the circuit's shape, by going through all subsets."""
    circuit_shape = shape(circuit, by_layer=by_layer)
    return [
        nodes
        for nodes in subsets(everything)
        if nodes != circuit and shape(nodes, by_layer=by_layer) == circuit_shape
    ]


def rivals_by_definition(
    oracle: FaithfulnessOracle, everything: NodeSet, circuit: NodeSet, *, by_layer: bool
) -> list[NodeSet]:
    """List the sets of the circuit's shape that are as faithful, necessary and complete."""
    max_distance = abs(1 - oracle.f1(circuit)) + 1e-4
    return [
        nodes
        for nodes in matched_sets(everything, circuit, by_layer=by_layer)
        if abs(1 - oracle.f1(nodes)) <= max_distance
        and abs(oracle.f1(everything - nodes)) <= 0.2
        and _is_complete(oracle, everything, nodes)
    ]


def _is_complete(oracle: FaithfulnessOracle, everything: NodeSet, nodes: NodeSet) -> bool:
    gaps_in = [
        abs(without - model_without)
        for u in nodes
        for without, model_without in [oracle.f(nodes - {u}, everything - {u})]
    ]
    gaps_out = [abs(oracle.f1(nodes | {v}) - oracle.f1(nodes)) for v in everything - nodes]
    return max(gaps_in, default=0) <= 0.2 and max(gaps_out, default=0) <= 0.1
