"""Activation patching over a grid of sites: which part of the clean run carries the behaviour?

Denoising puts the clean run's activation into the corrupted run and asks what it restores (is the
part sufficient?). Noising puts the corrupted activation into the clean run and asks what it
destroys (is the part necessary?). The two are not mirror images: one direction alone misses parts
that are redundant or only needed jointly (Heimersheim & Nanda 2024, arXiv 2404.15255). `grid`
defines how effects are normalised.

    from discovery import load_model, load_task, patch_sweep
    model = load_model("bundled"); task = load_task("ioi", model)
    patch_sweep(model, task, "resid_pre", direction="denoising").values     # [layer position]
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from discovery.backends.base import Backend
from discovery.engine import Block, Engine, base_side, engine_for
from discovery.engine.cost import CostTimer
from discovery.errors import SiteError, require_choice
from discovery.methods.patching.cells import LayerCells, build_all_cells, list_columns
from discovery.methods.patching.grid import Sweep, normalise
from discovery.methods.patching.screening import ScreenRequest, estimate_screen, plan_screen
from discovery.methods.subject import TaskLike, resolve_task
from discovery.progress import ProgressCallback
from discovery.sites import SITE_NAMES, Alignment, Direction, MetricName, SiteName


def patch_sweep(
    model: Backend,
    task: TaskLike,
    site: SiteName = "resid_pre",
    *,
    direction: Direction = "denoising",
    metric: MetricName | None = None,
    by: Alignment = "position",
    screen: bool = False,
    seed: int = 0,
    within: Bool[Tensor, "layer ..."] | None = None,
    max_cost: float | None = None,
    memory: int | None = None,
    progress: ProgressCallback | None = None,
    engine: Engine | None = None,
) -> Sweep:
    """Patch every cell of a site, one at a time, in every pair of a task.

    Args:
        model: the model that is patched.
        task: a task, all of whose pairs are measured, or what `load_task` accepts: a name, the path
            of a task file, or pairs.
        site: by layer and position: resid_pre, resid_mid, resid_post, attn_out, mlp_out. By layer
            and head, at all positions: head_out, q, pattern. By layer and key-value head, at all
            positions: k, v; if several query heads share one, `Sweep.query_heads` and a warning
            say which. By layer, head and position: head_out_by_position.
        direction: denoising (clean into corrupted) or noising (corrupted into clean).
        metric: what is measured; the task's own by default.
        by: "position", or "label" to align pairs of different wording by their named positions.
        screen: rank the cells by a gradient first, and measure only the highest ranked and a
            random sample of the rest, which bounds what was missed (see `screening`). For models
            whose whole grid is too expensive.
        seed: the seed of that sample.
        within: measure only these cells, as a mask that has or broadcasts to the shape of
            `Sweep.values`. The others are NaN.
        max_cost: the forward-pass equivalents that a screened sweep may take beyond its cached
            passes; it then measures fewer cells by rank. It does nothing without `screen`.
        memory: bytes that caches and batches may take; 60% of the free memory by default.
        progress: a function that hears how far the measurement is.
        engine: a prepared engine of the same model and task, whose caches are reused.

    Returns:
        The grid. Every number in it is measured exactly.

    Raises:
        SiteError: if the site is unknown or this model lacks it.
        MeasurementError: if another choice is unknown, or if `by` is "label" and no pair has any.
        BudgetError: if the engine's meter has a budget that does not suffice.
        MemoryLimitError: if the caches do not fit.
    """
    _check_choices(site, direction, by)
    began = time.monotonic()
    loaded = resolve_task(task, model, seed=0, pairs=None)
    engine = engine_for(engine, model, loaded, metric, memory, progress)
    timer = CostTimer(engine.meter, began)
    columns = list_columns(engine.task, site, by)
    engine.reserve_memory(site)
    plan = None
    if screen:
        request = ScreenRequest(seed=seed, within=within, max_cost=max_cost)
        plan = plan_screen(engine, site, direction, columns, request)
    cells = within if plan is None else plan.measured
    per_pair, clean, corrupted = _sweep_blocks(engine, site, direction, columns, cells)
    values, warnings = normalise(per_pair, clean, corrupted, direction)
    cost = timer.cost
    report = None if plan is None else plan.report(values)
    if report is not None:
        warnings += (report.caution,)
    return Sweep(
        site=site,
        direction=direction,
        metric=engine.metric,
        values=values,
        per_pair=per_pair,
        metric_clean=clean,
        metric_corrupted=corrupted,
        positions=columns,
        cost=cost,
        warnings=(*model.info.key_value_warning([site]), *warnings),
        screen=report,
        query_heads=model.info.key_value_groups(site),
    )


def estimate_sweep(
    engine: Engine,
    site: SiteName,
    direction: Direction,
    by: Alignment = "position",
    within: Bool[Tensor, "layer ..."] | None = None,
) -> float:
    """Return the forward-pass equivalents that a sweep will cost beyond its cached passes.

    Args:
        engine: the model and the pairs.
        site: the site.
        direction: denoising or noising.
        by: what the position axis counts.
        within: count only these cells, as in `patch_sweep`.
    """
    columns = list_columns(engine.task, site, by)
    engine.reserve_memory(site)
    return sum(
        block.estimate(
            *(
                cells.rows
                for cells in _build_cells(block, engine, site, direction, columns, within)
                if len(cells.rows)
            )
        )
        for _, block in engine.blocks()
    )


def plan_sweep(
    engine: Engine,
    site: SiteName,
    direction: Direction,
    max_cost: float | None,
    within: Bool[Tensor, "layer ..."] | None = None,
) -> tuple[float, bool]:
    """Decide whether a sweep is to be screened.

    It is screened if measuring all its cells costs more than `max_cost` and a screened sweep costs
    less than that. It never is on a model without gradients.

    Args:
        engine: the model and the pairs.
        site: the site.
        direction: denoising or noising.
        max_cost: the forward-pass equivalents that it may take; None means no limit.
        within: the cells that are asked for, as in `patch_sweep`.

    Returns:
        The forward-pass equivalents that the sweep will cost beyond its cached passes, and whether
        it is to be screened.
    """
    cost = estimate_sweep(engine, site, direction, within=within)
    if max_cost is None or cost <= max_cost or not engine.backend.abilities.gradients:
        return cost, False
    columns = list_columns(engine.task, site, "position")
    request = ScreenRequest(within=within, max_cost=max_cost)
    screened_cost = estimate_screen(engine, site, direction, columns, cost, request)
    return (screened_cost, True) if screened_cost < cost else (cost, False)


def _check_choices(site: str, direction: str, by: str) -> None:
    require_choice("site", site, SITE_NAMES, SiteError)
    require_choice("direction", direction, get_args(Direction))
    require_choice("by", by, get_args(Alignment))


def _build_cells(
    block: Block,
    engine: Engine,
    site: SiteName,
    direction: Direction,
    columns: tuple[int | str, ...],
    within: Bool[Tensor, "layer ..."] | None,
) -> Iterator[LayerCells]:
    """Build the cells of every layer, or those of a mask that broadcasts to the grid."""
    layers = build_all_cells(block, engine.backend, site, direction, columns)
    for layer, cells in enumerate(layers):
        if within is None:
            yield cells
            continue
        mask = within[layer if within.shape[0] > 1 else 0].to(cells.exists.device)
        yield cells.restrict_to(mask.expand(cells.exists.shape[1:]))


def _sweep_blocks(
    engine: Engine,
    site: SiteName,
    direction: Direction,
    columns: tuple[int | str, ...],
    within: Bool[Tensor, "layer ..."] | None,
) -> tuple[Float[Tensor, "pair ..."], Float[Tensor, "pair"], Float[Tensor, "pair"]]:
    """Measure every block of pairs: the metric of every cell, m(clean) and m(corrupted)."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for first, block in engine.blocks():
        layers = list(_build_cells(block, engine, site, direction, columns, within))
        label = engine.block_label(f"{site} {direction}", first, block)
        grid = _sweep_block(block, layers, direction, label)
        parts.append((grid, block.baseline("clean"), block.baseline("corrupted")))
    per_pair, clean, corrupted = (torch.cat(part) for part in zip(*parts, strict=True))
    return per_pair, clean, corrupted


def _sweep_block(
    block: Block, layers: list[LayerCells], direction: Direction, label: str
) -> Float[Tensor, "pair layer ..."]:
    """Measure the metric of every cell of these layers; NaN if a pair lacks the cell.

    A cell that cannot change anything has the metric of the base run, without a pass.
    """
    # The pass that cached the site's activations has computed this baseline too.
    base = block.baseline(base_side(direction))
    grids = [
        torch.where(cells.exists, base.reshape(-1, *[1] * (cells.exists.ndim - 1)), float("nan"))
        for cells in layers
    ]
    to_measure = [
        (grid, cells) for grid, cells in zip(grids, layers, strict=True) if len(cells.rows)
    ]
    jobs = [cells.rows for _, cells in to_measure]
    block.meter.begin(label, block.estimate(*jobs))
    for (grid, cells), metric in zip(to_measure, block.measure_all(jobs), strict=True):
        grid[cells.index] = metric
    return torch.stack(grids, 1)
