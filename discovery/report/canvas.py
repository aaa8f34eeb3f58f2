"""Drawing on a matplotlib Figure without pyplot: no global state, so that threads may draw at once.

Convention, the same in every figure: green moves the metric up (or restores the behaviour), purple moves it
down, white is nothing, grey is "no such cell". The scheme (PRGn) can be told apart by colour-blind readers,
and wherever a sign matters it also shows as a dashed line or a written number. Text is drawn as it is: no
mathematics between dollars, and what the font has no glyph for is written as an escape.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font

COLOUR_UP, COLOUR_DOWN, COLOUR_NEUTRAL, COLOUR_MISSING = "#1b7837", "#762a83", "#555555", "#bdbdbd"
COLOUR_MAP = "PRGn"
DPI = 144
_MAX_LABEL_LENGTH = 18  # letters of a tick label


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, its size in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def escape_for_font(text: str) -> str:
    """`text` in glyphs that the font has: spaces at the ends become dots, the rest that is unprintable escapes."""
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" ")) if inner else len(text)
    after = len(text) - len(text.rstrip(" ")) if inner else 0
    return "·" * before + "".join(_glyph(letter) for letter in inner) + "·" * after


def shorten_label(text: str) -> str:
    """`text` as a tick label: drawable, and not too long."""
    words = escape_for_font(text)
    return words if len(words) <= _MAX_LABEL_LENGTH else words[: _MAX_LABEL_LENGTH - 1] + "…"


def _glyph(letter: str) -> str:
    if letter.isprintable() and ord(letter) in _glyphs():
        return letter
    return letter.encode("unicode_escape").decode("ascii") if letter != "\\" else letter


@cache
def _glyphs() -> frozenset[int]:
    font = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return frozenset(get_font(str(font)).get_charmap())
