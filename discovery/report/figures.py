"""The figures of a run, as PNG: grids of effects, and faithfulness against size.

Values are shares of m(clean) − m(corrupted), as `patch_sweep` gives them: 1 restores the behaviour wholly, 0
does nothing. The colour scale is symmetric about 0; a NaN cell, which does not exist or could not be
measured, is grey.
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

_MAX_NUMBERED_CELLS = 240  # cells, at most, for each to have its number written in it
_MAX_TICK_LABELS = 64  # labels that fit on an axis


def draw_layer_position_heatmap(
    values: Float[np.ndarray, "layer position"], positions: Sequence[str], *, title: str
) -> bytes:
    """A grid of effects by layer and token position.

    Args:
        values: the effects; NaN where there is no such cell.
        positions: a token or label for each position, as it should be read.
        title: stands above.
    """
    layers = [str(layer) for layer in range(values.shape[0])]
    return draw_heatmap(
        values, layers, positions, title=title, row_axis="layer", column_axis="position"
    )


def draw_layer_head_heatmap(values: Float[np.ndarray, "layer head"], *, title: str) -> bytes:
    """A grid of effects by layer and attention head.

    Args:
        values: the effects; NaN where there is no such head.
        title: stands above.
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
    """A grid of numbers on a diverging scale centred at 0.

    Args:
        values: the numbers; NaN is drawn grey.
        rows: a label for each row, the first on top.
        columns: a label for each column.
        title: stands above.
        row_axis: what the rows are.
        column_axis: what the columns are.
        scale: what the numbers are.

    Raises:
        ValueError: where labels and values do not match, or there are none.
    """
    if (len(rows), len(columns)) != values.shape:
        raise ValueError(
            f"{len(rows)} × {len(columns)} labels for {values.shape[0]} × {values.shape[1]} values"
        )
    if not values.size:
        raise ValueError("a grid without cells cannot be drawn")
    known = np.isfinite(values)
    limit = float(np.abs(values[known]).max(initial=0.0)) or 1.0
    height, width = (min(14.0, 0.3 * count) for count in values.shape)
    figure = new_figure(max(4.8, width + 2.4), max(3.0, height + 1.6))
    axes = figure.add_subplot()
    shown = np.ma.masked_where(~known, values)
    image = axes.imshow(
        shown,
        cmap=matplotlib.colormaps[COLOUR_MAP].with_extremes(bad=COLOUR_MISSING),
        vmin=-limit,
        vmax=limit,
        aspect="auto",
    )
    _label_axis(axes, "y", rows, row_axis)
    _label_axis(axes, "x", columns, column_axis)
    note = "" if known.all() else "\n(grey: no such cell, or not measured)"
    axes.set_title(escape_for_font(title) + note, fontsize=10, parse_math=False)
    if values.size <= _MAX_NUMBERED_CELLS and values.shape[1] <= 24:
        _write_numbers(axes, values, limit)
    figure.colorbar(image, ax=axes, label=scale, fraction=0.05)
    return to_png(figure)


def draw_faithfulness_curve(
    curve: Sequence[CurvePoint],
    *,
    title: str = "Faithfulness against size",
    band: tuple[float, float] = (0.8, 1.2),
) -> bytes:
    """f of the best circuit of each size, a line for each ablation.

    Args:
        curve: the points; one whose faithfulness is unknown is left out.
        title: stands above.
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
    """Label the cells, every k-th where there are too many."""
    places = range(0, len(labels), 1 + (len(labels) - 1) // _MAX_TICK_LABELS)
    words = [shorten_label(labels[place]) for place in places]
    upright = axis == "x" and max(map(len, words), default=0) > 2
    if axis == "x":
        axes.set_xticks(
            list(places), labels=words, rotation=90 if upright else 0, fontsize=8, parse_math=False
        )
        axes.set_xlabel(name)
    else:
        axes.set_yticks(list(places), labels=words, fontsize=8, parse_math=False)
        axes.set_ylabel(name)


def _write_numbers(axes: Axes, values: Float[np.ndarray, "row column"], limit: float) -> None:
    """Write what rounds to something into each cell, dark on light and light on dark."""
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value) and abs(value) >= 0.005:
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
    """Two places and no leading zero: .52, -.31, 1.04."""
    words = f"{abs(value):.2f}".removeprefix("0")
    return f"-{words}" if value < 0 else words
