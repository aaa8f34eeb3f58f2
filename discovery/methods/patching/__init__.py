"""Activation patching: sweeps over sites, single nodes, and edges by path patching.

- `patch_sweep` patches every cell of a site (layer × position or layer × head), one at a time.
  `screening` measures only part of a grid that would be too expensive to measure whole.
- `measure_node_effects` patches every single head and MLP.
- `measure_edge_effects` patches every path between two nodes; `screen_edges` says which of them are
  worth measuring if there are many.
"""

from discovery.methods.patching.edge_screening import (
    estimate_edge_screen,
    screen_edges,
    select_edges,
)
from discovery.methods.patching.edges import (
    EdgeMetrics,
    compute_output_change,
    edges_between,
    estimate_edge,
    measure_edge,
    measure_edge_effects,
    measure_edges,
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
    "estimate_edge",
    "estimate_edge_screen",
    "estimate_node_effects",
    "estimate_sweep",
    "measure_edge",
    "measure_edge_effects",
    "measure_edges",
    "measure_node_effects",
    "node_effects_with_intervals",
    "normalise",
    "patch_sweep",
    "plan_sweep",
    "screen_edges",
    "select_edges",
    "top_cells",
]
