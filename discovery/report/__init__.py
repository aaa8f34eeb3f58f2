"""What a run looks like: figures as PNG, and one self-contained HTML page.

Takes numpy arrays, labels and the circuit record; needs no torch and no display.
"""

from __future__ import annotations

from discovery.report.circuit_drawing import circuit_drawing
from discovery.report.figures import faithfulness_curve, heatmap, layer_head_heatmap, layer_position_heatmap
from discovery.report.page import render_page

__all__ = [
    "circuit_drawing",
    "faithfulness_curve",
    "heatmap",
    "layer_head_heatmap",
    "layer_position_heatmap",
    "render_page",
]
