"""A Mermaid flowchart, which GitHub and most Markdown viewers draw.

Mermaid interprets quotes, brackets, semicolons, ``%%{`` and Markdown inside labels. Every
character that is not a letter, a digit or known to be harmless is therefore written as a numeric
entity, such as ``#60;`` for ``<``. Edges that lower the metric are dotted arrows; features are
hexagons.
"""

from __future__ import annotations

from discovery.graph.base import DiGraph
from discovery.graph.captions import edge_effect, edge_line, node_lines, node_tone, record_title
from discovery.sites import Node

_HARMLESS = " .,:+-/()"
_CLASSES = (
    "  classDef up fill:#d9f0d3,stroke:#1b7837,color:#000",
    "  classDef down fill:#e7d4e8,stroke:#762a83,color:#000,stroke-dasharray:4 3",
    "  classDef flat fill:#f7f7f7,stroke:#555,color:#000",
    "  classDef end_ fill:#fff,stroke:#222,color:#000",
)


def write_mermaid(graph: DiGraph) -> str:
    """Return the graph of a circuit as a flowchart from embed (bottom) to logits (top)."""
    lines = [f"%% {_escaped(record_title(graph.graph))}", "flowchart BT"]
    for name in sorted(graph.nodes, key=Node.parse):
        facts = graph.nodes[name]
        label = "<br/>".join(_escaped(line) for line in node_lines(name, facts))
        tone = node_tone(name, facts)
        opening, closing = "[", "]"
        if tone == "end":
            opening, closing = "([", "])"
        elif Node.parse(name).kind == "feature":
            opening, closing = "{{", "}}"
        style = "end_" if tone == "end" else tone
        lines.append(f'  {_name(name)}{opening}"{label}"{closing}:::{style}')
    for source, target in graph.edges:
        facts = graph.edges[source, target]
        arrow = "-.->" if (edge_effect(facts) or 0) < 0 else "-->"
        text = _escaped(edge_line(facts))
        label = f'|"{text}"|' if text else ""
        lines.append(f"  {_name(source)} {arrow}{label} {_name(target)}")
    return "\n".join([*lines, *_CLASSES]) + "\n"


def _name(node: str) -> str:
    return node.replace(".", "_").replace("@", "_")


def _escaped(text: str) -> str:
    return "".join(
        letter if letter.isalnum() or letter in _HARMLESS else f"#{ord(letter)};" for letter in text
    )
