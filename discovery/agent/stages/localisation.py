"""Stages 7 and 8 ("localise", "components"): the layers and positions of the behaviour.

Stage 7 patches the residual stream, stage 8 the output of each attention layer and of each MLP. If
prompts differ in length, positions are aligned by label; those without a label count from the end.
Both describe the behaviour and enter no verdict, so they come after it.
"""

from __future__ import annotations

from collections.abc import Sequence

from discovery.agent.context import RunContext
from discovery.agent.stages.position_sweeps import (
    DIRECTIONS,
    component_sites,
    describe_extent,
    run_sweep,
    save_sweep,
)
from discovery.agent.state import State
from discovery.evaluation import thresholds
from discovery.methods.patching import Sweep
from discovery.sites import SiteName

MAX_LISTED_CELLS = 5
MIN_STRONG_EFFECT = 0.1  # noising effect of a cell from which its layer is named


def localise(state: State, context: RunContext) -> State:
    """Patch the residual stream in each layer and at each position, in both directions."""
    grids, state = _run_sweeps(state, context, ["resid_pre"])
    measured: dict[str, object] = {str(grid.direction): describe_top_cells(grid) for grid in grids}
    cautions = screening_cautions(grids)
    noising = grids[1]
    strongest = [_strongest_position(noising, layer) for layer in range(noising.values.shape[0])]
    path = " → ".join(f"L{layer} at {position}" for layer, position in enumerate(strongest))
    return context.finish_stage(
        state,
        "localise",
        measured | _extent_facts(state, grids) | _caution_facts(cautions),
        f"the strongest position, layer by layer: {path}",
        f"largest noising effect of each layer{', of the cells measured' if cautions else ''}",
    )


def localise_components(state: State, context: RunContext) -> State:
    """Patch attention and MLP outputs in each layer and at each position, in both directions."""
    grids, state = _run_sweeps(state, context, component_sites(context.model.info))
    measured: dict[str, object] = {
        f"{grid.site} {grid.direction}": describe_top_cells(grid) for grid in grids
    }
    cautions = screening_cautions(grids)
    strong = [
        f"{grid.site} L{layer}"
        for grid in grids
        if grid.direction == "noising"
        for layer in _strong_layers(grid)
    ]
    return context.finish_stage(
        state,
        "components",
        measured | _extent_facts(state, grids) | _caution_facts(cautions),
        f"layers with a cell of at least {MIN_STRONG_EFFECT}"
        f"{', of those measured' if cautions else ''}: {', '.join(strong) or 'none'}",
        "noising effects of single cells",
    )


def _run_sweeps(
    state: State, context: RunContext, sites: Sequence[SiteName]
) -> tuple[list[Sweep], State]:
    """Sweep these sites in both directions, and return the grids and the state that has them."""
    grids = []
    for site in sites:
        for direction in DIRECTIONS:
            grid = run_sweep(context, site, direction)
            state = save_sweep(context, state, grid)
            grids.append(grid)
    return grids, state


def _extent_facts(state: State, grids: Sequence[Sweep]) -> dict[str, object]:
    return {
        f"{grid.site} {grid.direction}, extent": describe_extent(
            state.sweeps[f"{grid.site}-{grid.direction}"]
        )
        for grid in grids
    }


def screening_cautions(grids: Sequence[Sweep]) -> dict[str, str]:
    """Return a caution for each grid that was screened, and so has cells that were not measured."""
    return {
        f"{grid.site} {grid.direction}": grid.screen.caution
        for grid in grids
        if grid.screen is not None
    }


def describe_top_cells(grid: Sweep) -> list[dict[str, object]]:
    """Return the largest cells of a layer × position grid, the largest first."""
    flat = grid.values.nan_to_num(0.0).flatten()
    largest = flat.abs().topk(min(MAX_LISTED_CELLS, len(flat))).indices.tolist()
    width = grid.values.shape[1]
    return [
        {"layer": n // width, "position": grid.positions[n % width], "effect": float(flat[n])}
        for n in largest
    ]


def _caution_facts(cautions: dict[str, str]) -> dict[str, object]:
    return {f"{name}, screen": caution for name, caution in cautions.items()}


def _strongest_position(grid: Sweep, layer: int) -> str:
    row = grid.values[layer].nan_to_num(0.0)
    if float(row.max()) < thresholds.MIN_DROP:
        return "no single position"
    return str(grid.positions[int(row.argmax())])


def _strong_layers(grid: Sweep) -> list[int]:
    largest = grid.values.nan_to_num(0.0).abs().amax(1)
    layers: list[int] = (largest >= MIN_STRONG_EFFECT).nonzero().flatten().tolist()
    return layers
