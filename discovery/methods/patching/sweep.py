"""Activation patching over a grid of sites: which part of the clean run carries the behaviour?

Denoising puts the clean run's activation into the corrupted run and asks what it restores (sufficient); noising puts the
corrupted one into the clean run and asks what it destroys (necessary). They are not mirror images: one direction alone misses
redundant or jointly needed parts (Heimersheim & Nanda 2024, arXiv 2404.15255). With m(·) the mean over pairs,

    denoising: (m(patched) − m(corrupted)) / (m(clean) − m(corrupted))
    noising:   (m(clean) − m(patched)) / (m(clean) − m(corrupted))

so 1 is the whole behaviour and 0 none of it, and a negative value is a part that works against it.

    from discovery import load_model, load_task, patch_sweep
    model = load_model("bundled"); task = load_task("ioi", model)
    patch_sweep(model, task, "resid_pre", direction="denoising").values     # [layer position]

A sweep's positions by name: prompts of unequal length share labels, and what no label names counts from the end.

A sweep by label alone is blind to a behaviour that passes through an unlabelled token; one by position from the end mixes different
words. Here each pair's own token decides: its label where it has one, else its place from the end. No new pass is run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from discovery.backends.base import Backend
from discovery.engine import Block, Engine, engine_for
from discovery.engine.cost import MeasurementCost
from discovery.errors import MeasurementError, SiteError
from discovery.methods.patching.cells import LayerCells, build_cells, list_columns
from discovery.methods.patching.screening import ScreenReport, estimate_screen, plan_screen
from discovery.progress import ProgressCallback
from discovery.sites import (
    SITE_NAMES,
    Direction,
    KeyValueHead,
    MetricName,
    Node,
    SiteName,
    head,
    key_value_group,
    mlp,
)
from discovery.tasks.task import EncodedPair, Task

MIN_METRIC_GAP = 1e-6  # below this, m(clean) − m(corrupted) normalises nothing
Alignment = Literal["position", "label"]


@dataclass(frozen=True)
class Sweep:
    """A grid of patching effects.

    Attributes:
        values: [layer position], [layer head], [layer kv_head] or [layer head position]; normalised
            as in the module's docstring; NaN if no pair has the cell, or if there is nothing to
            normalise by.
        per_pair: the raw metric of each patched run, [pair …] with the same cells; NaN where the pair lacks the cell.
        metric_clean, metric_corrupted: [pair].
        positions: what the position axis counts (from 0; from the end, −1 being last; or labels); empty where there is none.
        screen: where the sweep was screened: what was estimated, and which cells were measured. `values` and `per_pair` hold measured
            numbers only, NaN elsewhere.
        query_heads: of k and v, if heads share them: the query heads of each key-value head. The
            second axis then counts key-value heads. Empty if it counts heads.
    """

    site: SiteName
    direction: Direction
    metric: MetricName
    values: Float[Tensor, "..."]
    per_pair: Float[Tensor, "pair ..."]
    metric_clean: Float[Tensor, "pair"]
    metric_corrupted: Float[Tensor, "pair"]
    positions: tuple[int | str, ...]
    cost: MeasurementCost
    warnings: tuple[str, ...] = ()
    screen: ScreenReport | None = None
    query_heads: tuple[tuple[int, ...], ...] = ()

    def unit(self, layer: int, index: int | None = None) -> Node | KeyValueHead | None:
        """What a cell patches: the head or key-value head at `index`, or the layer's MLP.

        None if it is a place in the stream, or the attention as a whole.
        """
        if index is None:
            return mlp(layer) if self.site == "mlp_out" else None
        if self.query_heads:
            return KeyValueHead(layer, index, self.query_heads[index])
        return head(layer, index)

    @property
    def head_labels(self) -> list[str]:
        """Labels along the head axis: 0, or KV0 = heads 0–2; empty if there is no such axis."""
        if self.query_heads:
            return [key_value_group(index, heads) for index, heads in enumerate(self.query_heads)]
        return [str(index) for index in range(self.values.shape[1])] if "head" in self.axes else []

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of `values`; "kv_head" instead of "head" where heads share the site."""
        by_head = "kv_head" if self.query_heads else "head"
        middle = (by_head,) if self.values.ndim == 3 or not self.positions else ()
        return ("layer", *middle, *(("position",) if self.positions else ()))


def patch_sweep(
    model: Backend,
    task: Task,
    site: SiteName = "resid_pre",
    *,
    direction: Direction = "denoising",
    metric: MetricName | None = None,
    by: Alignment = "position",
    screen: bool = False,
    seed: int = 0,
    memory: int | None = None,
    progress: ProgressCallback | None = None,
    engine: Engine | None = None,
) -> Sweep:
    """Patch every cell of a site, one at a time, in every pair.

    Args:
        site: resid_pre, resid_mid, resid_post, attn_out, mlp_out (layer × position), head_out (layer × head, all positions),
            head_out_by_position (layer × head × position), q, pattern (layer × head, all
            positions), k, v (layer × key-value head, all positions; if several query heads share
            one, `Sweep.query_heads` says which, and a warning says so too).
        direction: denoising (clean into corrupted) or noising (corrupted into clean).
        metric: the task's own where None.
        by: "position", or "label" to align pairs of different wording by their named positions.
        screen: rank the cells by a gradient first, and measure only the largest and a random sample of the rest, which bounds what
            was missed (see `methods.screen`). For models whose whole grid is too dear.
        seed: of that sample.
        memory: bytes that caches and batches may take; 60% of what is free where None.
        engine: a prepared engine of the same model and task, whose caches are reused.

    Returns:
        The grid; every number in it is exact, and every pair is measured.

    Raises:
        SiteError: a site that this model lacks.
        MeasurementError: unknown choices, or labels asked for where no pair has any.
    """
    _check_choices(site, direction, by)
    began = time.monotonic()
    engine = engine_for(engine, model, task, metric, memory, progress)
    before = engine.meter.spent
    columns = list_columns(task, site, by)
    engine.reserve_memory(site)
    chosen = plan_screen(engine, site, direction, columns, seed) if screen else None
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for first, block in engine.blocks():
        piece = engine.block_label(f"{site} {direction}", first, block)
        grid = _sweep_block(
            block,
            model,
            site,
            direction,
            columns,
            None if chosen is None else chosen.measured,
            piece,
        )
        parts.append((grid, block.baseline("clean"), block.baseline("corrupted")))
    per_pair, clean, corrupted = (torch.cat(part) for part in zip(*parts, strict=True))
    values, warnings = normalise(per_pair, clean, corrupted, direction)
    cost = MeasurementCost(engine.meter.spent - before, time.monotonic() - began)
    report = None if chosen is None else chosen.report(values)
    if report is not None:
        warnings += (report.caution,)
    info = model.info
    warnings = (*info.key_value_warning([site]), *warnings)
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
        warnings=warnings,
        screen=report,
        query_heads=info.key_value_groups(site),
    )


def estimate_sweep(
    engine: Engine, site: SiteName, direction: Direction, by: Alignment = "position"
) -> float:
    """Forward-pass equivalents that the rows of a sweep will cost beyond the cached passes."""
    columns = list_columns(engine.task, site, by)
    engine.reserve_memory(site)
    return sum(
        block.estimate(
            *(
                cells.rows
                for cells in _cells_with_rows(block, engine.backend, site, direction, columns)
            )
        )
        for _, block in engine.blocks()
    )


def plan_sweep(
    engine: Engine, site: SiteName, direction: Direction, max_cost: float | None
) -> tuple[float, bool]:
    """What a sweep will cost beyond the cached passes, and whether it is screened: where it costs more than `most`, and a screen less.

    Without gradients none is.
    """
    rows = estimate_sweep(engine, site, direction)
    if max_cost is None or rows <= max_cost or not engine.backend.abilities.gradients:
        return rows, False
    screened = estimate_screen(
        engine, site, direction, list_columns(engine.task, site, "position"), rows
    )
    return (screened, True) if screened < rows else (rows, False)


def normalise(
    per_pair: Float[Tensor, "pair ..."],
    clean: Float[Tensor, "pair"],
    corrupted: Float[Tensor, "pair"],
    direction: Direction,
) -> tuple[Float[Tensor, "..."], tuple[str, ...]]:
    """Ratio of means over the pairs that have each cell; NaN, with a warning, where the gap is below 1e-6."""
    have = ~per_pair.isnan()
    shape = (-1, *[1] * (per_pair.ndim - 1))
    count = have.sum(0)
    wide = per_pair.double()

    def mean(values: Tensor) -> Tensor:
        return torch.where(have, values, 0.0).sum(0) / count

    gap = mean((clean - corrupted).double().reshape(shape))
    change = (
        wide - corrupted.double().reshape(shape)
        if direction == "denoising"
        else clean.double().reshape(shape) - wide
    )
    values = mean(change) / torch.where(gap.abs() < MIN_METRIC_GAP, float("nan"), gap)
    warnings: tuple[str, ...] = ()
    if bool(((gap.abs() < MIN_METRIC_GAP) & (count > 0)).any()):
        warnings = (
            "m(clean) − m(corrupted) is below 1e-6: nothing to normalise by, so values are NaN there; per_pair holds the raw metric.",
        )
    return values.float(), warnings


def _check_choices(site: str, direction: str, by: str) -> None:
    if site not in SITE_NAMES:
        raise SiteError(f"site {site!r} is not known.", f"Allowed: {', '.join(SITE_NAMES)}.")
    if direction not in get_args(Direction):
        raise MeasurementError(
            f"direction {direction!r} is not known.", f"Allowed: {', '.join(get_args(Direction))}."
        )
    if by not in get_args(Alignment):
        raise MeasurementError(
            f"by {by!r} is not known.", f"Allowed: {', '.join(get_args(Alignment))}."
        )


def _cells_with_rows(
    block: Block,
    model: Backend,
    site: SiteName,
    direction: Direction,
    columns: tuple[int | str, ...],
) -> Iterator[LayerCells]:
    for layer in range(model.info.n_layers):
        cells = build_cells(block, model, site, layer, direction, columns)
        if len(cells.rows):
            yield cells


def _sweep_block(
    block: Block,
    model: Backend,
    site: SiteName,
    direction: Direction,
    columns: tuple[int | str, ...],
    measured: Bool[Tensor, "layer ..."] | None,
    label: str,
) -> Float[Tensor, "pair ..."]:
    """The metric of every cell; cells that cannot change anything keep the base run's without a pass; NaN where not to be measured."""
    layers = [
        build_cells(block, model, site, layer, direction, columns)
        for layer in range(model.info.n_layers)
    ]
    if measured is not None:
        layers = [cells.restrict_to(some) for cells, some in zip(layers, measured, strict=True)]
    base = block.baseline(
        "corrupted" if direction == "denoising" else "clean"
    )  # after: the pass that cached the site gave it too
    grids = [
        torch.where(cells.exists, base.reshape(-1, *[1] * (cells.exists.ndim - 1)), float("nan"))
        for cells in layers
    ]
    busy = [(grid, cells) for grid, cells in zip(grids, layers, strict=True) if len(cells.rows)]
    jobs = [cells.rows for _, cells in busy]
    block.meter.begin(label, block.estimate(*jobs))
    for (grid, cells), found in zip(busy, block.measure_all(jobs), strict=True):
        grid[cells.index] = found
    return torch.stack(grids, 1)


def align_by_label(sweep: Sweep, task: Task) -> Sweep:
    """The same measurements with the position axis named; each cell averages the pairs that have it.

    Args:
        sweep: by position, over every pair of the task. Where the prompts have one length, or the sweep was screened (its cells were
            chosen by position), it is returned as it is.
    """
    if task.has_one_length or not sweep.positions or sweep.screen is not None:
        return sweep
    names = [_names(pair) for pair in task.pairs]
    places: dict[str | int, list[int]] = {}
    for own in names:
        for place, name in own.items():
            places.setdefault(name, []).append(place)
    columns = sorted(places, key=lambda name: (sum(places[name]) / len(places[name]), str(name)))
    shape = (*sweep.per_pair.shape[:-1], len(columns))
    per_pair = sweep.per_pair.new_full(shape, float("nan"))
    at = {position: n for n, position in enumerate(sweep.positions)}
    for number, own in enumerate(names):
        for place, name in own.items():
            per_pair[number, ..., columns.index(name)] = sweep.per_pair[number, ..., at[place]]
    values, warnings = normalise(
        per_pair, sweep.metric_clean, sweep.metric_corrupted, sweep.direction
    )
    return replace(
        sweep, per_pair=per_pair, values=values, positions=tuple(columns), warnings=warnings
    )


def _names(pair: EncodedPair) -> dict[int, str | int]:
    """Place from the end -> its label, or itself."""
    length = len(pair.clean)
    labels = {
        position - length: name for name, position in sorted(pair.labels.items(), reverse=True)
    }
    return {place: labels.get(place, place) for place in range(-length, 0)}
