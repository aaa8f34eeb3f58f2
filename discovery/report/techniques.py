"""Pictures of the techniques: curves by layer, bars of contributions, and attention patterns.

The functions take plain values with the attributes that they name, so that they need no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float
from matplotlib.ticker import MaxNLocator

from discovery.report.canvas import (
    COLOUR_DOWN,
    COLOUR_UP,
    escape_for_font,
    new_figure,
    shorten_label,
    to_png,
)

_MAX_PICTURES = 12  # heads in one picture
_MAX_TOKEN_LABELS = 40


class DrawnInterval(Protocol):
    """A mean with its interval."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


class DrawnReading(Protocol):
    """What the logit lens reads at one layer."""

    @property
    def layer(self) -> int: ...
    @property
    def metric(self) -> DrawnInterval: ...
    @property
    def probability(self) -> DrawnInterval: ...


def draw_lens(readings: Sequence[DrawnReading], metric: str, *, title: str) -> bytes:
    """Draw the metric and the answer's probability by layer, with bands for their intervals.

    Args:
        readings: the readings of one position, one for each layer. The last is the model's output.
        metric: the name of the metric.
        title: the title above the picture.
    """
    figure = new_figure(7.2, 4.8)
    upper, lower = figure.subplots(2, 1, sharex=True)
    layers = [reading.layer for reading in readings]
    for axes, name, label in (
        (upper, "metric", metric.replace("_", " ")),
        (lower, "probability", "probability of the answer"),
    ):
        intervals = [getattr(reading, name) for reading in readings]
        axes.fill_between(
            layers,
            [interval.low for interval in intervals],
            [interval.high for interval in intervals],
            color=COLOUR_UP,
            alpha=0.2,
        )
        means = [interval.mean for interval in intervals]
        axes.plot(layers, means, "o-", color=COLOUR_UP, markersize=3)
        axes.axhline(0.0, color="#888888", linewidth=0.8)
        axes.set_ylabel(label)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    lower.set_xlabel(f"read at the input of layer ({layers[-1]}: the model's output)")
    upper.set_title(escape_for_font(title), fontsize=10, parse_math=False)
    return to_png(figure)


def draw_bars(
    names: Sequence[str], intervals: Sequence[DrawnInterval], *, title: str, scale: str
) -> bytes:
    """Draw a bar for each named quantity, with a line for its interval; the first is on top.

    Args:
        names: the name of each quantity.
        intervals: its mean and its interval.
        title: the title above the picture.
        scale: what the numbers are.

    Raises:
        ValueError: if there is nothing to draw.
    """
    if not names:
        raise ValueError("a picture without bars cannot be drawn")
    figure = new_figure(6.4, max(2.4, 0.26 * len(names) + 1.2))
    axes = figure.add_subplot()
    means = [interval.mean for interval in intervals]
    below = [interval.mean - interval.low for interval in intervals]
    above = [interval.high - interval.mean for interval in intervals]
    colours = [COLOUR_UP if mean >= 0 else COLOUR_DOWN for mean in means]
    places = list(range(len(names)))
    axes.barh(places, means, xerr=[below, above], color=colours, ecolor="#333333", capsize=2)
    labels = [shorten_label(name) for name in names]
    axes.set_yticks(places, labels=labels, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.axvline(0.0, color="#888888", linewidth=0.8)
    axes.set_xlabel(scale)
    axes.set_title(escape_for_font(title), fontsize=10, parse_math=False)
    return to_png(figure)


class DrawnTokenChange(Protocol):
    """A token's probability before and after an intervention."""

    @property
    def text(self) -> str: ...
    @property
    def before(self) -> float: ...
    @property
    def after(self) -> float: ...


def draw_token_changes(tokens: Sequence[DrawnTokenChange], *, title: str) -> bytes:
    """Draw the probability of each token before and after an intervention; the first is on top.

    Args:
        tokens: the tokens.
        title: the title above the picture.
    """
    figure = new_figure(6.4, max(2.4, 0.4 * len(tokens) + 1.2))
    axes = figure.add_subplot()
    places = list(range(len(tokens)))
    before = [place - 0.2 for place in places]
    after = [place + 0.2 for place in places]
    axes.barh(before, [token.before for token in tokens], 0.4, color="#aaaaaa", label="before")
    axes.barh(after, [token.after for token in tokens], 0.4, color=COLOUR_UP, label="after")
    labels = [shorten_label(repr(token.text)) for token in tokens]
    axes.set_yticks(places, labels=labels, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("probability")
    axes.legend(fontsize=8)
    axes.set_title(escape_for_font(title), fontsize=10, parse_math=False)
    return to_png(figure)


def draw_bar_panels(panels: Mapping[str, Sequence[tuple[str, float]]], *, title: str) -> bytes:
    """Draw named values as bars, in one panel for each group; two panels stand in a row.

    Args:
        panels: for each title of a panel, the name and the value of each bar.
        title: the title above the picture.

    Raises:
        ValueError: if there is nothing to draw.
    """
    if not panels or not all(panels.values()):
        raise ValueError("a panel without bars cannot be drawn")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    most = max(map(len, panels.values()))
    figure = new_figure(5.2 * columns, rows * max(2.2, 0.24 * most + 0.9) + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (name, bars) in zip(grid.flat, panels.items(), strict=False):
        values = [value for _, value in bars]
        colours = [COLOUR_UP if value >= 0 else COLOUR_DOWN for value in values]
        places = list(range(len(bars)))
        axes.barh(places, values, color=colours)
        labels = [shorten_label(label) for label, _ in bars]
        axes.set_yticks(places, labels=labels, fontsize=7, parse_math=False)
        axes.invert_yaxis()
        axes.axvline(0.0, color="#888888", linewidth=0.8)
        axes.set_title(escape_for_font(name), fontsize=9, parse_math=False)
    figure.suptitle(escape_for_font(title), fontsize=10, parse_math=False)
    return to_png(figure)


def draw_pattern(
    patterns: Float[np.ndarray, "head dst src"], names: Sequence[str], tokens: Sequence[str]
) -> bytes:
    """Draw the attention pattern of each head: rows look, columns are looked at.

    Args:
        patterns: the attention of each head; at most 12 heads are drawn.
        names: the name of each head.
        tokens: the text of each token; positions are numbered if there are none.
    """
    shown = patterns[:_MAX_PICTURES]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(3.4 * columns + 1.2, 3.2 * rows + 0.8)
    grid = figure.subplots(rows, columns, squeeze=False)
    length = patterns.shape[-1]
    for place, axes in enumerate(grid.flat):
        if place >= len(shown):
            axes.set_axis_off()
            continue
        axes.imshow(shown[place], cmap="Greens", vmin=0.0, vmax=1.0)
        axes.set_title(escape_for_font(names[place]), fontsize=9, parse_math=False)
        if tokens and length <= _MAX_TOKEN_LABELS:
            labels = [shorten_label(token) for token in tokens]
            ticks = list(range(length))
            axes.set_xticks(ticks, labels=labels, rotation=90, fontsize=6, parse_math=False)
            axes.set_yticks(ticks, labels=labels, fontsize=6, parse_math=False)
    return to_png(figure)


def draw_head_kinds(scores: Mapping[str, Float[np.ndarray, "layer head"]]) -> bytes:
    """Draw the score of every head for every kind, one grid for each kind.

    Args:
        scores: for each kind, the score of each head, from 0 to 1.
    """
    columns = min(4, len(scores))
    rows = -(-len(scores) // columns)
    figure = new_figure(2.8 * columns, 2.8 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(scores) :]:
        axes.set_axis_off()
    for axes, (name, values) in zip(grid.flat, scores.items(), strict=False):
        axes.imshow(values, cmap="Greens", vmin=0.0, vmax=1.0, aspect="auto")
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("head", fontsize=8)
        axes.set_ylabel("layer", fontsize=8)
    figure.colorbar(grid.flat[0].images[0], ax=grid, label="score", fraction=0.04)
    return to_png(figure)


class DrawnProbeCell(Protocol):
    """A probe at one layer and position."""

    @property
    def layer(self) -> int: ...
    @property
    def position(self) -> int | str: ...
    @property
    def accuracy(self) -> DrawnInterval: ...
    @property
    def shuffled(self) -> float: ...
    @property
    def token(self) -> float: ...


def draw_probe(cells: Sequence[DrawnProbeCell], *, title: str) -> bytes:
    """Draw the accuracy of probes by layer, with its controls: a panel for each position.

    Args:
        cells: the probes.
        title: the title above the picture.
    """
    positions = list(dict.fromkeys(cell.position for cell in cells))
    figure = new_figure(7.2, 1.0 + 2.2 * len(positions))
    panels = figure.subplots(len(positions), 1, sharex=True, squeeze=False)[:, 0]
    for axes, position in zip(panels, positions, strict=True):
        column = [cell for cell in cells if cell.position == position]
        layers = [cell.layer for cell in column]
        means = [cell.accuracy.mean for cell in column]
        low = [cell.accuracy.low for cell in column]
        high = [cell.accuracy.high for cell in column]
        axes.fill_between(layers, low, high, color=COLOUR_UP, alpha=0.2)
        axes.plot(layers, means, "o-", color=COLOUR_UP, markersize=3, label="probe")
        shuffled = [cell.shuffled for cell in column]
        axes.plot(layers, shuffled, "--", color="#888888", label="shuffled labels")
        axes.plot(
            layers, [cell.token for cell in column], ":", color="#333333", label="token alone"
        )
        axes.set_ylim(0.0, 1.05)
        axes.set_ylabel(f"accuracy at {position}", parse_math=False)
    panels[0].legend(fontsize=8, loc="lower right")
    panels[0].set_title(escape_for_font(title), fontsize=10, parse_math=False)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].set_xlabel("layer")
    return to_png(figure)
