"""Activation patching: sweeps over sites, single nodes, and edges by path patching.

- `patch_sweep` patches every cell of a site (layer × position or layer × head), one at a time.
  `screening` measures only part of a grid that would be too expensive to measure whole.
- `measure_node_effects` patches every single head and MLP.
- `measure_edge_effects` patches every path between two nodes.
"""

from discovery.methods.patching.edges import (
    EdgeMetrics,
    compute_output_change,
    edges_between,
    measure_edge,
    measure_edge_effects,
)
from discovery.methods.patching.grid import (
    Cell,
    Sweep,
    align_by_label,
    effect_change,
    normalise,
    top_cells,
)
from discovery.methods.patching.nodes import (
    NodeEffects,
    estimate_node_effects,
    measure_node_effects,
    node_effects_with_intervals,
)
from discovery.methods.patching.screening import ScreenReport
from discovery.methods.patching.sweep import estimate_sweep, patch_sweep, plan_sweep

__all__ = [
    "Cell",
    "EdgeMetrics",
    "NodeEffects",
    "ScreenReport",
    "Sweep",
    "align_by_label",
    "compute_output_change",
    "edges_between",
    "effect_change",
    "estimate_node_effects",
    "estimate_sweep",
    "measure_edge",
    "measure_edge_effects",
    "measure_node_effects",
    "node_effects_with_intervals",
    "normalise",
    "patch_sweep",
    "plan_sweep",
    "top_cells",
]
