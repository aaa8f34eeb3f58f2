"""Graphviz DOT: embed at the bottom, logits at the top, one row for each layer.

Green nodes and edges move the metric up, purple ones down. Those that move it down are dashed as
well, so that the drawing can be read without colours. Features are hexagons. The same record
gives the same text.
"""

from __future__ import annotations

from itertools import groupby

from discovery.graph.base import DiGraph
from discovery.graph.captions import (
    Tone,
    edge_effect,
    edge_line,
    node_lines,
    node_tone,
    record_title,
)
from discovery.sites import Node

_STYLE: dict[Tone, str] = {
    "up": 'fillcolor="#d9f0d3", color="#1b7837"',
    "down": 'fillcolor="#e7d4e8", color="#762a83", style="filled,rounded,dashed"',
    "flat": 'fillcolor="#f7f7f7", color="#555555"',
    "end": 'fillcolor="#ffffff", color="#222222", shape=ellipse, style=filled',
}


def write_dot(graph: DiGraph) -> str:
    """Return the graph of a circuit as a digraph in DOT."""
    title = _quoted(record_title(graph.graph))
    lines = [
        "digraph circuit {",
        f"  graph [label={title}, labelloc=t, rankdir=BT, fontname=Helvetica];",
        '  node [shape=box, style="filled,rounded", fontname=Helvetica];',
        "  edge [fontname=Helvetica, fontsize=10];",
    ]
    for _, row in groupby(
        sorted(graph.nodes, key=Node.parse), key=lambda name: Node.parse(name).order[:2]
    ):
        names = list(row)
        lines += [_node(graph, name) for name in names]
        if len(names) > 1:
            lines.append(f"  {{ rank=same; {' '.join(_quoted(name) + ';' for name in names)} }}")
    lines += [_edge(graph, source, target) for source, target in graph.edges]
    return "\n".join([*lines, "}"]) + "\n"


def _node(graph: DiGraph, name: str) -> str:
    facts = graph.nodes[name]
    label = _quoted(*node_lines(name, facts))
    style = _STYLE[node_tone(name, facts)]
    shape = ", shape=hexagon" if Node.parse(name).kind == "feature" else ""
    return f"  {_quoted(name)} [label={label}, {style}{shape}];"


def _edge(graph: DiGraph, source: str, target: str) -> str:
    facts = graph.edges[source, target]
    effect = edge_effect(facts) or 0.0
    colour = "#555555"
    if effect:
        colour = "#1b7837" if effect > 0 else "#762a83"
    style = "dashed" if effect < 0 else "solid"
    width = f"{1 + 4 * min(1.0, abs(effect)):.2f}"
    label = _quoted(edge_line(facts))
    attributes = f'label={label}, color="{colour}", style={style}, penwidth={width}'
    return f"  {_quoted(source)} -> {_quoted(target)} [{attributes}];"


def _quoted(*lines: str) -> str:
    """Return lines as a DOT string: a backslash would begin an escape, a quote end the string."""
    escaped = [line.replace("\\", "\\\\").replace('"', '\\"') for line in lines]
    return '"' + r"\n".join(escaped) + '"'
