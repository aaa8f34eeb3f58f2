"""What holds of every circuit record. A rule that is broken is a ValueError, which pydantic words with its place."""

from __future__ import annotations

from collections.abc import Sequence

from discovery.graph.dictionary import Dictionary
from discovery.graph.record import CircuitEdge, ModelFacts
from discovery.sites import Node, slots_of


def place(edge: CircuitEdge) -> tuple[Node, Node]:
    """Source and target, which sort edges forward."""
    return Node.parse(edge.source), Node.parse(edge.target)


def unique(what: str, names: list[str]) -> None:
    """No name stands twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"the {what} {twice[0]} is there twice")


def check_edge(edge: CircuitEdge, ids: set[str]) -> None:
    """It runs forward between nodes that are there, into inputs that its target has."""
    source, target = place(edge)
    for end in (edge.source, edge.target):
        if end not in ids:
            raise ValueError(f"the edge {source}->{target} has an end that is no node of the circuit: {end}")
    if not source.feeds(target):
        raise ValueError(f"the edge {source}->{target} runs backwards: the source must come before the target")
    alien = sorted(set(edge.inputs) - set(slots_of(target)))
    if alien:
        raise ValueError(f"{target} has no input {alien[0]!r}; it has {', '.join(slots_of(target))}")


def check_bounds(node: Node, model: ModelFacts) -> None:
    """The model has it, where the record says how large the model is."""
    for index, limit, what in ((node.layer, model.n_layers, "layers"), (node.head, model.n_heads, "heads in each layer")):
        if index is not None and limit is not None and index >= limit:
            raise ValueError(f"{node} is not in the model, which has {limit} {what}")


def check_features(features: Sequence[Node], dictionaries: Sequence[Dictionary]) -> None:
    """Each is in a dictionary that the record names."""
    width = {(known.layer, known.site): known.d_sae for known in dictionaries}
    for node in features:
        most = width.get((node.layer or 0, node.site or "resid_pre"))
        if most is None:
            raise ValueError(f"{node} is a feature of a dictionary that the record does not name")
        if (node.feature or 0) >= most:
            raise ValueError(f"{node} is not in its dictionary, which has {most} features")
