"""Stages 2 and 3: where in layer × position does the behaviour live, first in the residual stream, then in what each layer adds."""

from __future__ import annotations

from collections.abc import Sequence

from discovery.agent.context import RunContext
from discovery.agent.state import State
from discovery.evaluation import thresholds
from discovery.methods.patching import Sweep, align_by_label, patch_sweep, plan_sweep
from discovery.sites import Direction, SiteName

DIRECTIONS: tuple[Direction, ...] = ("denoising", "noising")
MAX_LISTED_CELLS = 5
SWEEP_BUDGET_SHARE = 0.1  # of the budget, for one sweep


def localise(state: State, context: RunContext) -> State:
    """Residual stream, layer × position; where prompts differ in length, × label, and what has none by its place from the end."""
    grids = [_run_sweep(context, "resid_pre", direction) for direction in DIRECTIONS]
    measured: dict[str, object] = {str(grid.direction): describe_top_cells(grid) for grid in grids}
    measured |= {f"{name}, screen": caution for name, caution in screening_cautions(grids).items()}
    noising = grids[1]
    best = [_strongest_position(noising, layer) for layer in range(noising.values.shape[0])]
    path = " → ".join(f"L{layer} at {where}" for layer, where in enumerate(best))
    why = f"largest noising effect of each layer{', of the cells measured' if screening_cautions(grids) else ''}"
    return context.finish_stage(
        state, "localise", measured, f"the strongest position, layer by layer: {path}", why
    )


def localise_components(state: State, context: RunContext) -> State:
    """Attention and MLP outputs, layer × position."""
    sites: list[SiteName] = (
        ["attn_out"] if context.model.info.attn_only else ["attn_out", "mlp_out"]
    )
    grids = [_run_sweep(context, site, direction) for site in sites for direction in DIRECTIONS]
    measured: dict[str, object] = {
        f"{grid.site} {grid.direction}": describe_top_cells(grid) for grid in grids
    }
    measured |= {f"{name}, screen": caution for name, caution in screening_cautions(grids).items()}
    strong = [
        f"{grid.site} L{layer}"
        for grid in grids
        if grid.direction == "noising"
        for layer in _strong_layers(grid)
    ]
    return context.finish_stage(
        state,
        "components",
        measured,
        f"layers with a cell of at least 0.1{', of those measured' if screening_cautions(grids) else ''}: {', '.join(strong) or 'none'}",
        "noising effects of single cells",
    )


def _run_sweep(context: RunContext, site: SiteName, direction: Direction) -> Sweep:
    engine = context.evaluator("discovery").engine
    most = max_sweep_cost(context.settings.budget, exhaustive=context.settings.exhaustive)
    screen = most is not None and plan_sweep(engine, site, direction, most)[1]
    found = patch_sweep(
        context.model,
        engine.task,
        site,
        direction=direction,
        screen=screen,
        seed=context.seed,
        engine=engine,
    )
    grid = align_by_label(found, engine.task)
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
        {"positions": ",".join(map(str, grid.positions)), "metric": grid.metric},
    )
    return grid


def max_sweep_cost(budget: float | None, *, exhaustive: bool) -> float | None:
    """What one sweep may cost before it is screened; None where none is: without a budget, and by --exhaustive."""
    return None if budget is None or exhaustive else SWEEP_BUDGET_SHARE * budget


def screening_cautions(grids: Sequence[Sweep]) -> dict[str, str]:
    """What an event says of the grids that were not measured whole."""
    return {
        f"{grid.site} {grid.direction}": grid.screen.caution
        for grid in grids
        if grid.screen is not None
    }


def describe_top_cells(grid: Sweep) -> list[dict[str, object]]:
    """The largest cells of a layer × position grid."""
    flat = grid.values.nan_to_num(0.0).flatten()
    chosen = flat.abs().topk(min(MAX_LISTED_CELLS, len(flat))).indices.tolist()
    width = grid.values.shape[1]
    return [
        {"layer": n // width, "position": grid.positions[n % width], "effect": float(flat[n])}
        for n in chosen
    ]


def _strongest_position(grid: Sweep, layer: int) -> str:
    row = grid.values[layer].nan_to_num(0.0)
    return (
        str(grid.positions[int(row.argmax())])
        if float(row.max()) >= thresholds.MIN_DROP
        else "no single position"
    )


def _strong_layers(grid: Sweep) -> list[int]:
    return (grid.values.nan_to_num(0.0).abs().amax(1) >= 0.1).nonzero().flatten().tolist()
