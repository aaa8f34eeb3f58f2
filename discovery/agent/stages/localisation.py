"""Stages 2 and 3 ("localise", "components"): the layers and positions of the behaviour.

Stage 2 patches the residual stream, stage 3 the output of each attention layer and of each MLP. If
prompts differ in length, positions are aligned by label; those without a label count from the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from discovery.agent.context import RunContext, join_names
from discovery.agent.state import State
from discovery.backends.info import ModelInfo
from discovery.evaluation import thresholds
from discovery.methods.patching import Sweep, align_by_label, patch_sweep, plan_sweep
from discovery.sites import Direction, SiteName

DIRECTIONS: tuple[Direction, ...] = ("denoising", "noising")
MAX_LISTED_CELLS = 5
MIN_STRONG_EFFECT = 0.1  # noising effect of a cell from which its layer is named
SWEEP_BUDGET_SHARE = 0.1  # of the budget, for one sweep


def localise(state: State, context: RunContext) -> State:
    """Patch the residual stream in each layer and at each position, in both directions."""
    grids = [_run_sweep(context, "resid_pre", direction) for direction in DIRECTIONS]
    measured: dict[str, object] = {str(grid.direction): describe_top_cells(grid) for grid in grids}
    cautions = screening_cautions(grids)
    noising = grids[1]
    strongest = [_strongest_position(noising, layer) for layer in range(noising.values.shape[0])]
    path = " → ".join(f"L{layer} at {position}" for layer, position in enumerate(strongest))
    return context.finish_stage(
        state,
        "localise",
        measured | _caution_facts(cautions),
        f"the strongest position, layer by layer: {path}",
        f"largest noising effect of each layer{', of the cells measured' if cautions else ''}",
    )


def localise_components(state: State, context: RunContext) -> State:
    """Patch attention and MLP outputs in each layer and at each position, in both directions."""
    grids = [
        _run_sweep(context, site, direction)
        for site in component_sites(context.model.info)
        for direction in DIRECTIONS
    ]
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
        measured | _caution_facts(cautions),
        f"layers with a cell of at least {MIN_STRONG_EFFECT}"
        f"{', of those measured' if cautions else ''}: {', '.join(strong) or 'none'}",
        "noising effects of single cells",
    )


def component_sites(info: ModelInfo) -> list[SiteName]:
    """Return the sites at which a layer adds to the residual stream."""
    return ["attn_out"] if info.attn_only else ["attn_out", "mlp_out"]


def max_sweep_cost(budget: float | None, *, exhaustive: bool) -> float | None:
    """Return what one sweep may cost before it is screened by gradients.

    None means that no sweep is screened: there is no budget, or `exhaustive` was asked for.
    """
    return None if budget is None or exhaustive else SWEEP_BUDGET_SHARE * budget


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


def _run_sweep(context: RunContext, site: SiteName, direction: Direction) -> Sweep:
    engine = context.evaluator("discovery").engine
    settings = context.settings
    max_cost = max_sweep_cost(settings.budget, exhaustive=settings.exhaustive)
    screen = max_cost is not None and plan_sweep(engine, site, direction, max_cost)[1]
    sweep = patch_sweep(
        context.model,
        engine.task,
        site,
        direction=direction,
        screen=screen,
        seed=context.seed,
        engine=engine,
    )
    grid = align_by_label(sweep, engine.task)
    arrays = {
        "values": grid.values,
        "per_pair": grid.per_pair,
        "metric_clean": grid.metric_clean,
        "metric_corrupted": grid.metric_corrupted,
    }
    if grid.screen is not None:
        arrays["gradient_estimates"] = grid.screen.estimates
    context.save_arrays(
        f"{site}-{direction}",
        arrays,
        {"positions": join_names(grid.positions), "metric": grid.metric},
    )
    return grid


def _strongest_position(grid: Sweep, layer: int) -> str:
    row = grid.values[layer].nan_to_num(0.0)
    if float(row.max()) < thresholds.MIN_DROP:
        return "no single position"
    return str(grid.positions[int(row.argmax())])


def _strong_layers(grid: Sweep) -> list[int]:
    largest = grid.values.nan_to_num(0.0).abs().amax(1)
    layers: list[int] = (largest >= MIN_STRONG_EFFECT).nonzero().flatten().tolist()
    return layers
