"""The drawing of a circuit.

`embed` is at the bottom and `logits` at the top. Each layer has a row for its heads and one for its
MLP, and features have a row at the layer in which they are. Layers without nodes are left out. A
strong line is an edge of large effect, and a thin pale one an edge of hardly any. An edge that
lowers the metric is dashed and purple.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any, NamedTuple

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

_ROW_HEIGHT = 0.85  # inches
_COLUMN_WIDTH = 1.5  # inches
_MARGIN = 0.6  # inches, for the names of the rows
_LABEL_FRACTION = 0.4  # the position of a label along its edge; edges often cross in the middle
_MAX_LABELLED_EDGES = 16  # in a drawing with more edges, they get no numbers
_MAX_ROLE_LINES = 2  # parts of a role in a box
_MAX_LINE_LENGTH = 28  # characters of a line in a box
_MIN_LINE_WIDTH = 0.5  # points, of an edge without effect
_MIN_OPACITY = 0.15  # of an edge without effect
_FULL_EFFECT = 0.2  # an edge of this effect is drawn in full colour
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
    """Return the drawing of a circuit as PNG."""
    graph = circuit.to_networkx()
    points, row_names = _layout(circuit)
    width = max(point.x for point in points.values()) * 2 + _COLUMN_WIDTH
    figure = new_figure(max(5.0, width + _MARGIN), max(2.8, _ROW_HEIGHT * len(row_names) + 0.6))
    axes = figure.add_subplot()
    axes.set_axis_off()
    left = -width / 2 - _MARGIN
    axes.set_xlim(left, width / 2)
    axes.set_ylim(-0.5, len(row_names) - 0.5)
    axes.set_title(escape_for_font(record_title(graph.graph)), fontsize=10, parse_math=False)
    for source, target, facts in graph.edges(data=True):
        label = edge_line(facts) if len(graph.edges) <= _MAX_LABELLED_EDGES else ""
        _draw_edge(axes, points[source], points[target], edge_effect(facts), label)
    for name, facts in graph.nodes(data=True):
        _draw_node(axes, points[name], node_tone(name, facts), _box_lines(name, facts))
    for y, name in enumerate(row_names):
        axes.text(left, y, name, ha="left", va="center", fontsize=7, color="#666666")
    return to_png(figure)


def _layout(circuit: CircuitGraph) -> tuple[dict[str, _Point], list[str]]:
    """Return the position of each node, and the name of each row."""
    points: dict[str, _Point] = {}
    row_names: list[str] = []
    for y, (order, row) in enumerate(groupby(circuit.nodes, key=lambda node: node.node.order[:2])):
        nodes = list(row)
        for index, node in enumerate(nodes):
            points[node.id] = _Point((index - (len(nodes) - 1) / 2) * _COLUMN_WIDTH, y)
        first = nodes[0]
        is_end = first.layer is None  # embed or logits
        row_names.append("" if is_end else f"layer {order[0]} {_ROW_NAMES[first.kind]}")
    return points, row_names


def _box_lines(name: str, facts: Mapping[str, Any]) -> list[str]:
    """Return the lines in the box of a node: two parts of its role, without what explains them."""
    parts = str(facts.get("role") or "").split("; ")[:_MAX_ROLE_LINES]
    role = "; ".join(part.partition(":")[0] for part in parts)
    lines = node_lines(name, {**facts, "role": role})
    return [
        line if len(line) <= _MAX_LINE_LENGTH else f"{line[: _MAX_LINE_LENGTH - 1]}…"
        for line in lines
    ]


def _draw_node(axes: Axes, point: _Point, tone: Tone, lines: list[str]) -> None:
    box = {
        "boxstyle": "round,pad=0.35",
        "facecolor": _FILL[tone],
        "edgecolor": _OUTLINE[tone],
        "linestyle": "--" if tone == "down" else "-",
    }
    axes.text(
        point.x,
        point.y,
        "\n".join(map(escape_for_font, lines)),
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
    colour = COLOUR_NEUTRAL
    if effect:
        colour = COLOUR_UP if effect > 0 else COLOUR_DOWN
    strength = min(1.0, abs(effect or 0.0))
    opacity = _MIN_OPACITY + (1 - _MIN_OPACITY) * min(1.0, strength / _FULL_EFFECT)
    # An edge that goes straight up past other rows would be hidden by their boxes. It is bent.
    bend = 0.25 if target.x == source.x and target.y - source.y > 1 else 0.0
    arrow = FancyArrowPatch(
        (source.x, source.y + 0.2),
        (target.x, target.y - 0.22),
        arrowstyle="-|>",
        mutation_scale=9,
        connectionstyle=f"arc3,rad={bend}",
        color=colour,
        linestyle="--" if colour == COLOUR_DOWN else "-",
        linewidth=_MIN_LINE_WIDTH + 3 * strength,
        alpha=opacity,
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
