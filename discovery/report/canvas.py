"""Drawing with matplotlib but without pyplot, whose global state would keep threads from drawing.

All figures use the same colours: green moves the metric up or restores the behaviour, purple moves
it down, white means no effect, and grey marks a cell that does not exist. Colour-blind readers can
distinguish these colours (PRGn). If a sign matters, a dashed line or a number shows it too. Text is
drawn as it is: dollar signs do not start mathematics, and characters without a glyph are written as
escapes.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font

COLOUR_UP = "#1b7837"
COLOUR_DOWN = "#762a83"
COLOUR_NEUTRAL = "#555555"
COLOUR_MISSING = "#bdbdbd"
COLOUR_MAP = "PRGn"
DPI = 144
_MAX_LABEL_LENGTH = 18  # characters of a tick label


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of the given size in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure) -> bytes:
    """Return the figure as PNG. The same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def escape_for_font(text: str) -> str:
    """Return the text in characters that the font can draw.

    Spaces at either end become dots, so that they can be seen. Other characters without a glyph
    become escapes.
    """
    inner = text.strip(" ")
    if not inner:
        return "·" * len(text)
    leading = len(text) - len(text.lstrip(" "))
    trailing = len(text) - len(text.rstrip(" "))
    return "·" * leading + "".join(map(_escape_character, inner)) + "·" * trailing


def shorten_label(text: str) -> str:
    """Return the text as a tick label: in characters that the font can draw, and not too long."""
    label = escape_for_font(text)
    return label if len(label) <= _MAX_LABEL_LENGTH else label[: _MAX_LABEL_LENGTH - 1] + "…"


def _escape_character(character: str) -> str:
    is_drawable = character.isprintable() and ord(character) in _code_points_of_font()
    if is_drawable or character == "\\":
        return character
    return character.encode("unicode_escape").decode("ascii")


@cache
def _code_points_of_font() -> frozenset[int]:
    font = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return frozenset(get_font(str(font)).get_charmap())
