"""GraphML, for Gephi, Cytoscape, yEd and ``networkx.read_graphml``.

Text, numbers and booleans are written under their own names as GraphML has them; a nested value
is written under its own name as a JSON string. The attribute `encoded` of each element is a JSON
object that says how to read the element back: `json` lists the names that hold JSON, and `other`
holds what GraphML cannot write (null, and names or texts with characters that XML does not have).
`read_graphml` reads it without loss.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import ParseError

import networkx

from discovery.errors import StoreError
from discovery.graph.base import DiGraph
from discovery.graph.strict_json import dumps, loads

_XML_TEXT = re.compile("[\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")
_ENCODED = "encoded"


def write_graphml(graph: DiGraph) -> str:
    """Return a graph, whose attributes are plain JSON data, as GraphML."""
    flat: DiGraph = networkx.DiGraph(**_encode(graph.graph))
    for name, facts in graph.nodes(data=True):
        flat.add_node(name, **_encode(facts))
    for source, target, facts in graph.edges(data=True):
        flat.add_edge(source, target, **_encode(facts))
    file = io.BytesIO()
    networkx.write_graphml_xml(flat, file)
    return file.getvalue().decode("utf-8") + "\n"


def read_graphml(text: str) -> DiGraph:
    """Return the graph that `write_graphml` was given.

    Raises:
        StoreError: if the text is not GraphML, or was not written by `write_graphml`.
    """
    try:
        flat = networkx.parse_graphml(text)
    except (ParseError, networkx.NetworkXError, ValueError, KeyError) as fault:
        raise StoreError(
            f"The text is not GraphML: {fault}.",
            "Give what `circuit-scout runs export --format graphml` wrote.",
        ) from fault
    graph: DiGraph = networkx.DiGraph()
    defaults = ("node_default", "edge_default")  # networkx adds these when it reads
    facts_of_graph = {name: value for name, value in flat.graph.items() if name not in defaults}
    graph.graph.update(_decode(facts_of_graph))
    for name, facts in flat.nodes(data=True):
        graph.add_node(name, **_decode(facts))
    for source, target, facts in flat.edges(data=True):
        graph.add_edge(source, target, **_decode(facts))
    return graph


def _encode(facts: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    nested: list[str] = []
    other: dict[str, Any] = {}
    for name, value in facts.items():
        if value is None or name == _ENCODED or not _XML_TEXT.fullmatch(name):
            other[name] = value
        elif isinstance(value, bool | int | float) or (
            isinstance(value, str) and _XML_TEXT.fullmatch(value)
        ):
            flat[name] = value
        else:
            flat[name] = dumps(value)
            nested.append(name)
    return {**flat, _ENCODED: dumps({"json": nested, "other": other})}


def _decode(flat: Mapping[str, Any]) -> dict[str, Any]:
    facts = {name: value for name, value in flat.items() if name != _ENCODED}
    match loads(str(flat.get(_ENCODED, "{}")), "The attribute `encoded`"):
        case {"json": list(names), "other": dict(other)}:
            for name in names:
                facts[str(name)] = loads(str(facts.get(str(name))), f"The attribute {name!r}")
            return {**facts, **other}
    raise StoreError(
        "The GraphML was not written by Circuit Scout, or has lost the attribute `encoded`.",
        "Export it again as graphml or json.",
    )
