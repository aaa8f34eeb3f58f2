"""The circuit as a drawing: embed at the bottom, logits on top, a row for the heads and one for the MLP of each layer.

A line is as thick as its edge's effect; dashed and purple lowers the metric. Layers without a node take no room; features have a row where
they are written.
"""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch

from discovery.graph import CircuitGraph
from discovery.graph.captions import (
    Tone,
    edge_effect,
    edge_line,
    node_lines,
    node_tone,
    record_title,
)
from discovery.report.canvas import (
    COLOUR_DOWN,
    COLOUR_NEUTRAL,
    COLOUR_UP,
    escape_for_font,
    new_figure,
    to_png,
)

_ROW_HEIGHT, _COLUMN_WIDTH, _MARGIN = (
    0.85,
    1.5,
    0.6,
)  # inches; the margin holds the names of the rows
_LABEL_FRACTION = 0.4  # where on an edge its label stands: not in the middle, where edges cross
_MAX_LABELLED_EDGES = 16  # edges, at most, for each to have its number written on it
_MAX_LINE_LENGTH = 20  # letters of a line in a box
_ROW_NAMES = {"attention_head": "heads", "mlp": "MLP", "feature": "features"}
_FILL: dict[Tone, str] = {"up": "#d9f0d3", "down": "#e7d4e8", "flat": "#f7f7f7", "end": "#ffffff"}
_OUTLINE: dict[Tone, str] = {
    "up": COLOUR_UP,
    "down": COLOUR_DOWN,
    "flat": COLOUR_NEUTRAL,
    "end": "#222222",
}


class _Point(NamedTuple):
    x: float
    y: float


def draw_circuit(circuit: CircuitGraph) -> bytes:
    """The circuit as PNG."""
    graph = circuit.to_networkx()
    places, names = _layout(circuit)
    width = max(place.x for place in places.values()) * 2 + _COLUMN_WIDTH
    figure = new_figure(max(5.0, width + _MARGIN), max(2.8, _ROW_HEIGHT * len(names) + 0.6))
    axes = figure.add_subplot()
    axes.set_axis_off()
    left = -width / 2 - _MARGIN
    axes.set_xlim(left, width / 2)
    axes.set_ylim(-0.5, len(names) - 0.5)
    axes.set_title(escape_for_font(record_title(graph.graph)), fontsize=10, parse_math=False)
    for source, target, facts in graph.edges(data=True):
        label = edge_line(facts) if len(graph.edges) <= _MAX_LABELLED_EDGES else ""
        _draw_edge(axes, places[source], places[target], edge_effect(facts), label)
    for name, facts in graph.nodes(data=True):
        _draw_node(
            axes,
            places[name],
            node_tone(name, facts),
            [line[:_MAX_LINE_LENGTH] for line in node_lines(name, facts)],
        )
    for y, name in enumerate(names):
        axes.text(left, y, name, ha="left", va="center", fontsize=7, color="#666666")
    return to_png(figure)


def _layout(circuit: CircuitGraph) -> tuple[dict[str, _Point], list[str]]:
    """Where each node stands, and the name of each row."""
    places: dict[str, _Point] = {}
    names: list[str] = []
    for y, (order, row) in enumerate(groupby(circuit.nodes, key=lambda node: node.node.order[:2])):
        nodes = list(row)
        for index, node in enumerate(nodes):
            places[node.id] = _Point((index - (len(nodes) - 1) / 2) * _COLUMN_WIDTH, y)
        names.append(
            "" if nodes[0].layer is None else f"layer {order[0]} {_ROW_NAMES[nodes[0].kind]}"
        )
    return places, names


def _draw_node(axes: Axes, place: _Point, tone: Tone, lines: list[str]) -> None:
    box = {
        "boxstyle": "round,pad=0.35",
        "facecolor": _FILL[tone],
        "edgecolor": _OUTLINE[tone],
        "linestyle": "--" if tone == "down" else "-",
    }
    words = "\n".join(escape_for_font(line) for line in lines)
    axes.text(
        place.x,
        place.y,
        words,
        ha="center",
        va="center",
        fontsize=7.5,
        parse_math=False,
        bbox=box,
        zorder=3,
        linespacing=1.25,
    )


def _draw_edge(
    axes: Axes, source: _Point, target: _Point, effect: float | None, label: str
) -> None:
    colour, style = (
        (COLOUR_NEUTRAL, "-")
        if not effect
        else ((COLOUR_UP, "-") if effect > 0 else (COLOUR_DOWN, "--"))
    )
    # An edge straight up over other rows would be hidden by their boxes: bend it.
    bend = 0.25 if target.x == source.x and target.y - source.y > 1 else 0.0
    arrow = FancyArrowPatch(
        (source.x, source.y + 0.2),
        (target.x, target.y - 0.22),
        arrowstyle="-|>",
        mutation_scale=9,
        connectionstyle=f"arc3,rad={bend}",
        color=colour,
        linestyle=style,
        linewidth=0.8 + 3 * min(1.0, abs(effect or 0.0)),
        alpha=0.8,
        zorder=1,
    )
    axes.add_patch(arrow)
    if label:
        x = source.x + _LABEL_FRACTION * (target.x - source.x) + bend * (target.y - source.y) / 2
        y = source.y + _LABEL_FRACTION * (target.y - source.y)
        backing = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8}
        axes.text(
            x,
            y,
            label,
            ha="center",
            va="center",
            fontsize=6.5,
            color=colour,
            zorder=2,
            bbox=backing,
        )
