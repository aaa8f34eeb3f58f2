"""The figures of a run as PNG: grids of effects, and faithfulness against size.

Effects are shares of m(clean) − m(corrupted), as `patch_sweep` returns them: 1 restores the whole
behaviour, and 0 has no effect. The colour scale is symmetric about 0. A cell is grey if its value
is NaN, because it does not exist or could not be measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from discovery.graph import EVIDENCE_ABLATIONS, CurvePoint
from discovery.report.canvas import (
    COLOUR_MAP,
    COLOUR_MISSING,
    COLOUR_UP,
    escape_for_font,
    new_figure,
    shorten_label,
    to_png,
)

_MAX_NUMBERED_CELLS = 240  # in a grid with more cells, they get no numbers
_MAX_NUMBERED_COLUMNS = 24  # likewise
_MIN_NUMBER = 0.005  # smaller numbers would be rounded to 0, and are not written
_MAX_TICK_LABELS = 64  # the number of labels that fit on an axis


def draw_layer_position_heatmap(
    values: Float[np.ndarray, "layer position"], positions: Sequence[str], *, title: str
) -> bytes:
    """Draw effects by layer and token position.

    Args:
        values: the effects. NaN marks a cell that does not exist or was not measured.
        positions: the label of each position, e.g. its token.
        title: the title above the grid.
    """
    layers = [str(layer) for layer in range(values.shape[0])]
    return draw_heatmap(
        values, layers, positions, title=title, row_axis="layer", column_axis="position"
    )


def draw_layer_head_heatmap(values: Float[np.ndarray, "layer head"], *, title: str) -> bytes:
    """Draw effects by layer and attention head.

    Args:
        values: the effects. NaN marks a head that does not exist or was not measured.
        title: the title above the grid.
    """
    layers, heads = ([str(index) for index in range(count)] for count in values.shape)
    return draw_heatmap(values, layers, heads, title=title, row_axis="layer", column_axis="head")


def draw_heatmap(
    values: Float[np.ndarray, "row column"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    row_axis: str,
    column_axis: str,
    scale: str = "share of clean − corrupted",
) -> bytes:
    """Draw a grid of numbers on a diverging scale that is centred at 0.

    Args:
        values: the numbers. NaN is drawn grey.
        rows: the label of each row, the first row on top.
        columns: the label of each column.
        title: the title above the grid.
        row_axis: what the rows are, e.g. "layer".
        column_axis: what the columns are, e.g. "position".
        scale: what the numbers are.

    Raises:
        ValueError: if the labels do not match the values, or if there are no values.
    """
    if (len(rows), len(columns)) != values.shape:
        raise ValueError(
            f"{len(rows)} × {len(columns)} labels for {values.shape[0]} × {values.shape[1]} values"
        )
    if not values.size:
        raise ValueError("a grid without cells cannot be drawn")
    is_known = np.isfinite(values)
    limit = float(np.abs(values[is_known]).max(initial=0.0)) or 1.0
    height, width = (min(14.0, 0.3 * count) for count in values.shape)
    figure = new_figure(max(4.8, width + 2.4), max(3.0, height + 1.6))
    axes = figure.add_subplot()
    image = axes.imshow(
        np.ma.masked_where(~is_known, values),
        cmap=matplotlib.colormaps[COLOUR_MAP].with_extremes(bad=COLOUR_MISSING),
        vmin=-limit,
        vmax=limit,
        aspect="auto",
    )
    _label_axis(axes, "y", rows, row_axis)
    _label_axis(axes, "x", columns, column_axis)
    note = "" if is_known.all() else "\n(grey: no such cell, or not measured)"
    axes.set_title(escape_for_font(title) + note, fontsize=10, parse_math=False)
    if values.size <= _MAX_NUMBERED_CELLS and values.shape[1] <= _MAX_NUMBERED_COLUMNS:
        _write_numbers(axes, values, limit)
    figure.colorbar(image, ax=axes, label=scale, fraction=0.05)
    return to_png(figure)


def draw_faithfulness_curve(
    curve: Sequence[CurvePoint],
    *,
    title: str = "Faithfulness against size",
    band: tuple[float, float] = (0.8, 1.2),
) -> bytes:
    """Draw f of the best circuit of each size, with a line for each ablation.

    Args:
        curve: the points. A point without a known faithfulness is left out.
        title: the title above the figure.
        band: the bounds of condition (a).
    """
    figure = new_figure(6.4, 3.8)
    axes = figure.add_subplot()
    axes.axhspan(
        *band, color=COLOUR_UP, alpha=0.12, label=f"sufficient: {band[0]:g} to {band[1]:g}"
    )
    for level in (0.0, 1.0):
        axes.axhline(level, color="#888888", linewidth=0.8)
    for ablation, style in zip(EVIDENCE_ABLATIONS, ("o-", "s--"), strict=True):
        points = sorted(
            (point.size, point.faithfulness)
            for point in curve
            if point.ablation == ablation and point.faithfulness is not None
        )
        if points:
            axes.plot(*zip(*points, strict=True), style, markersize=4, label=f"{ablation} ablation")
    axes.set_xlabel("heads and MLPs in the circuit")
    axes.set_ylabel("faithfulness f")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(escape_for_font(title), fontsize=10, parse_math=False)
    axes.legend(fontsize=8, frameon=False)
    return to_png(figure)


def _label_axis(axes: Axes, axis: str, labels: Sequence[str], name: str) -> None:
    """Label the cells along an axis, or every k-th cell if there are too many."""
    ticks = list(range(0, len(labels), 1 + (len(labels) - 1) // _MAX_TICK_LABELS))
    texts = [shorten_label(labels[tick]) for tick in ticks]
    if axis == "x":
        rotation = 90 if max(map(len, texts), default=0) > 2 else 0
        axes.set_xticks(ticks, labels=texts, rotation=rotation, fontsize=8, parse_math=False)
        axes.set_xlabel(name)
    else:
        axes.set_yticks(ticks, labels=texts, fontsize=8, parse_math=False)
        axes.set_ylabel(name)


def _write_numbers(axes: Axes, values: Float[np.ndarray, "row column"], limit: float) -> None:
    """Write its number into each cell, dark on light cells and light on dark ones."""
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value) and abs(value) >= _MIN_NUMBER:
            colour = "white" if abs(value) > 0.6 * limit else "black"
            axes.text(
                column,
                row,
                _format_cell(float(value)),
                ha="center",
                va="center",
                fontsize=5.5,
                color=colour,
            )


def _format_cell(value: float) -> str:
    """Format a number with two decimals and no leading zero: .52, -.31, 1.04."""
    digits = f"{abs(value):.2f}".removeprefix("0")
    return f"-{digits}" if value < 0 else digits
