"""The report of a run: figures as PNG, and one self-contained HTML page.

The functions take numpy arrays, labels and the circuit record. They need neither torch nor a
display.
"""

from __future__ import annotations

from discovery.report.circuit_drawing import draw_circuit
from discovery.report.figures import (
    draw_faithfulness_curve,
    draw_heatmap,
    draw_layer_head_heatmap,
    draw_layer_position_heatmap,
)
from discovery.report.page import render_page

__all__ = [
    "draw_circuit",
    "draw_faithfulness_curve",
    "draw_heatmap",
    "draw_layer_head_heatmap",
    "draw_layer_position_heatmap",
    "render_page",
]
