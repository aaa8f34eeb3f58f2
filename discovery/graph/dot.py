"""Graphviz DOT, written by hand: embed at the bottom, logits at the top, one row to a layer.

Green moves the metric up, purple down, and a dashed outline or line says "down" too, so that no meaning
hangs on colour alone. Features are hexagons. The same record gives the same text.
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
    """`graph`, a circuit's, as a digraph in DOT."""
    lines = [
        "digraph circuit {",
        f"  graph [label={_quoted(record_title(graph.graph))}, labelloc=t, rankdir=BT, fontname=Helvetica];",
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
    shape = ", shape=hexagon" if Node.parse(name).kind == "feature" else ""
    return f"  {_quoted(name)} [label={_quoted(*node_lines(name, facts))}, {_STYLE[node_tone(name, facts)]}{shape}];"


def _edge(graph: DiGraph, source: str, target: str) -> str:
    facts = graph.edges[source, target]
    effect = edge_effect(facts) or 0.0
    colour, style = (
        ("#762a83", "dashed") if effect < 0 else ("#1b7837" if effect > 0 else "#555555", "solid")
    )
    width = f"{1 + 4 * min(1.0, abs(effect)):.2f}"
    look = f'label={_quoted(edge_line(facts))}, color="{colour}", style={style}, penwidth={width}'
    return f"  {_quoted(source)} -> {_quoted(target)} [{look}];"


def _quoted(*lines: str) -> str:
    """A DOT string of `lines`: a backslash would begin an escape, a quote would end it."""
    return '"' + r"\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in lines) + '"'
