from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from discovery.graph import CurvePoint
from discovery.report import (
    draw_faithfulness_curve,
    draw_heatmap,
    draw_layer_head_heatmap,
    draw_layer_position_heatmap,
)
from discovery.report.canvas import COLOUR_MISSING, escape_for_font, shorten_label
from discovery.report.figures import _format_cell

HOSTILE = [
    "$x$",
    "$\\bad{$",
    "$_$",
    "$",
    "\\$",
    "<script>",
    " a",
    "  ",
    "",
    "\n",
    "中文",
    "🙂",
    "\ud83d",
    "\x00",
    "%s",
    "{}",
    "_^",
    "\u202e",
]


def count_colours(png: bytes) -> dict[tuple[int, int, int], int]:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    counts = image.getcolors(maxcolors=1 << 24)
    assert counts is not None
    return {colour: count for count, colour in counts if isinstance(colour, tuple)}  # type: ignore[misc]


def rgb(name: str) -> tuple[int, int, int]:
    return int(name[1:3], 16), int(name[3:5], 16), int(name[5:7], 16)


def heatmap_colours(values: list[list[float]]) -> dict[tuple[int, int, int], int]:
    grid = np.array(values, dtype=np.float32)
    return count_colours(draw_layer_head_heatmap(grid, title="head_out"))


def test_a_missing_cell_is_grey_and_only_that() -> None:
    assert heatmap_colours([[1.0, -1.0], [float("nan"), 0.5]])[rgb(COLOUR_MISSING)] > 1000
    assert heatmap_colours([[1.0, -1.0], [0.0, 0.5]]).get(rgb(COLOUR_MISSING), 0) < 1000
    assert heatmap_colours([[1.0, float("inf")], [0.0, 0.5]])[rgb(COLOUR_MISSING)] > 1000


def test_the_scale_is_centred_at_zero_whatever_the_values() -> None:
    neutral = (246, 247, 246)  # the middle of PRGn
    for grid in ([[0.0, 4.0], [0.0, 3.0]], [[0.0, -0.01], [0.0, -0.02]], [[0.0, 0.0], [0.0, 0.0]]):
        counts = heatmap_colours(grid)
        middle = sum(
            count
            for colour, count in counts.items()
            if max(abs(a - b) for a, b in zip(colour, neutral, strict=True)) <= 2
        )
        assert middle > 5000


@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (12, 12), (48, 25), (3, 300)])
def test_any_size_of_model_can_be_drawn(shape: tuple[int, int]) -> None:
    layers, positions = shape
    png = draw_layer_position_heatmap(
        np.zeros((layers, positions)),
        [f" token{place}" for place in range(positions)],
        title="resid_pre",
    )
    width, height = Image.open(io.BytesIO(png)).size
    assert 300 <= width <= 2600
    assert 300 <= height <= 2600


def test_nothing_measured_at_all_is_drawn_grey() -> None:
    assert heatmap_colours([[float("nan")] * 3] * 2)[rgb(COLOUR_MISSING)] > 5000


def test_hostile_labels_are_drawn_as_text() -> None:
    values = np.zeros((2, len(HOSTILE)))
    for title in HOSTILE:
        assert draw_layer_position_heatmap(values, HOSTILE, title=title).startswith(b"\x89PNG")


def test_characters_without_a_glyph_are_escaped() -> None:
    assert escape_for_font(" the") == "·the"
    assert escape_for_font("  ") == "··"
    assert escape_for_font("a\nb\x00") == "a\\nb\\x00"
    assert escape_for_font("中") == "\\u4e2d"
    assert escape_for_font("a\\b é Ġ") == "a\\b é Ġ"
    assert len(shorten_label("x" * 50)) == 18


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.52, ".52"), (-0.31, "-.31"), (10.05, "10.05"), (-1.0, "-1.00"), (0.999, "1.00")],
)
def test_the_number_in_a_cell(value: float, text: str) -> None:
    assert _format_cell(value) == text


def test_labels_must_match_the_values() -> None:
    with pytest.raises(ValueError, match="2 × 1 labels for 2 × 3 values"):
        draw_heatmap(np.zeros((2, 3)), ["a", "b"], ["x"], title="", row_axis="", column_axis="")
    with pytest.raises(ValueError, match="without cells"):
        draw_layer_head_heatmap(np.zeros((2, 0)), title="")


def test_a_curve_leaves_out_what_is_unknown_and_draws_the_rest() -> None:
    points = [
        CurvePoint(ablation="mean", size=size, faithfulness=value)
        for size, value in ((1, 0.2), (3, None), (2, 0.9))
    ]
    known = [point for point in points if point.faithfulness is not None]
    assert draw_faithfulness_curve(points) == draw_faithfulness_curve(known)
    assert draw_faithfulness_curve(points) != draw_faithfulness_curve([])


def test_the_same_figure_gives_the_same_bytes_in_every_thread() -> None:
    grid = np.linspace(-1, 1, 12).reshape(3, 4)
    with ThreadPoolExecutor(4) as pool:
        drawn = set(pool.map(lambda _: draw_layer_head_heatmap(grid, title="x"), range(6)))
    assert len(drawn) == 1
