"""A gradient screen for grids that are too dear to measure whole.

Attribution patching with integrated gradients (`engine.gradients`) estimates every cell for the price of a few passes. The largest
estimates are then measured exactly, and so is a random sample of the rest: a gradient can be blind where attention is saturated or
where two parts stand in for each other, so nothing is left out on its word alone. What the sample found bounds what was missed.
Estimates are kept apart from measurements and never stand in their place.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import hypergeom
from torch import Tensor

from discovery.engine import Block, Engine, Side, attribute_sites, estimate_attributions
from discovery.methods.patching.cells import POSITION_SITES, build_cells, locate_columns
from discovery.sites import ActivationKind, Direction, SiteName

RANKED_SHARE, MIN_RANKED = (
    0.1,
    32,
)  # of the cells that can change anything, this share and at least so many are measured by rank ...
SAMPLE_SIZE = 59  # ... and so many of the rest at random: with none above the threshold, about 5% of the rest may be, with 95% confidence
MISSED_SHARE_CONFIDENCE = 0.95
SIZEABLE_EFFECT = 0.1  # an effect that should not be missed


@dataclass(frozen=True)
class ScreenReport:
    """What a screened sweep rests on.

    Attributes:
        estimates: the normalised effect of every cell by the gradient, as `Sweep.values`; not a measurement.
        ranked, sampled: how many cells were measured for their estimate, and how many at random from the rest.
        rest: how many cells were not measured (cells that cannot change anything are known to be 0, and count as measured).
        largest: the largest absolute effect in the sample; NaN where no sample was needed, or its effects are not known.
        missed: with 95% confidence, at most this share of the rest has an effect of 0.1 or more; 0 where there is no rest, 1 where the
            sample's effects are not known (nothing to normalise by).
    """

    estimates: Float[Tensor, "..."]
    n_ranked: int
    n_sampled: int
    n_unmeasured: int
    largest_sampled: float
    missed_share: float

    @property
    def caution(self) -> str:
        """In words."""
        if not self.n_unmeasured:
            return "screened: every cell was measured all the same."
        if math.isnan(self.largest_sampled):
            return f"screened: {self.n_unmeasured} cells were not measured, and nothing bounds their effects: there is nothing to normalise by."
        return (
            f"screened: {self.n_ranked} cells were measured for their gradient estimate and {self.n_sampled} at random, {self.n_unmeasured} were not: "
            f"of those at most {self.missed_share:.0%} have an effect of {SIZEABLE_EFFECT} or more (95% confidence), the sample's largest is "
            f"{self.largest_sampled:.3f}."
        )


@dataclass(frozen=True)
class ScreenPlan:
    """Which cells a screened sweep measures.

    Attributes:
        measured: [layer …], cells without effect by construction included. by_rank, at_random: disjoint parts of it.
    """

    estimates: Float[Tensor, "..."]
    measured: Bool[Tensor, "..."]
    by_rank: Bool[Tensor, "..."]
    at_random: Bool[Tensor, "..."]

    def report(self, values: Float[Tensor, "..."]) -> ScreenReport:
        """What the measurements say of the cells that were left out."""
        sample = values[self.at_random.to(values.device)].abs()
        rest = int((~self.measured).sum())
        above = int((sample >= SIZEABLE_EFFECT).sum())
        known = len(sample) > 0 and bool(sample.isfinite().all())
        largest = float(sample.max()) if known else float("nan")
        missed = 0.0 if not rest else bound_missed_share(above, len(sample), rest) if known else 1.0
        return ScreenReport(
            self.estimates, int(self.by_rank.sum()), len(sample), rest, largest, missed
        )


def bound_missed_share(
    found: int, drawn: int, rest: int, confidence: float = MISSED_SHARE_CONFIDENCE
) -> float:
    """Upper bound of the share among what was not drawn, of a finite number: the hypergeometric distribution inverted.

    The largest share of the rest at which so few would still be found in the sample with a chance of 5%.
    """
    hidden = np.arange(rest + 1)  # how many of the rest there may be
    chance = hypergeom.cdf(found, drawn + rest, found + hidden, drawn)
    return float(hidden[chance > 1 - confidence].max()) / rest


def plan_screen(
    engine: Engine, site: SiteName, direction: Direction, columns: tuple[int | str, ...], seed: int
) -> ScreenPlan:
    """Estimate every cell and choose those to measure."""
    base: Side = "corrupted" if direction == "denoising" else "clean"
    kind: ActivationKind = "z" if site.startswith("head_out") else site  # type: ignore[assignment]  # the rest are kinds
    shape = (engine.backend.info.n_layers, *_cell_shape(engine, site, columns))
    if (
        math.prod(shape) <= MIN_RANKED + SAMPLE_SIZE
    ):  # all of them would be measured: a gradient decides nothing
        everything = torch.ones(shape, dtype=torch.bool, device=engine.backend.device)
        return ScreenPlan(
            torch.full_like(everything, float("nan"), dtype=torch.float32),
            everything,
            everything,
            ~everything,
        )
    parts: list[
        tuple[Tensor, Tensor, Tensor]
    ] = []  # summed over pairs: change, gap; any: can change
    for _, block in engine.blocks():
        found, exists = _attribution_grid(block, site, attribute_sites(block, base, kind), columns)
        gap = (block.baseline("clean") - block.baseline("corrupted")).reshape(
            -1, *[1] * (found.ndim - 1)
        )
        can = torch.stack(
            [
                _can_change(block, engine, site, direction, layer, columns)
                for layer in range(found.shape[1])
            ]
        )
        parts.append((found.sum(0), torch.where(exists, gap, 0.0).sum(0), can))
    change, gaps, active = (torch.stack(part).sum(0) for part in zip(*parts, strict=True))
    active = active > 0
    estimates = (change if direction == "denoising" else -change) / gaps
    by_rank = torch.zeros_like(active)
    places = active.nonzero()
    size = estimates[active].abs().nan_to_num()
    best = size.argsort(descending=True, stable=True)[
        : max(MIN_RANKED, math.ceil(RANKED_SHARE * len(places)))
    ]
    by_rank[tuple(places[best].T)] = True
    left = (active & ~by_rank).nonzero()
    drawn = random.Random(f"screen-{seed}").sample(range(len(left)), min(SAMPLE_SIZE, len(left)))
    at_random = torch.zeros_like(active)
    at_random[tuple(left[drawn].T)] = True
    return ScreenPlan(estimates, ~active | by_rank | at_random, by_rank, at_random)


def estimate_screen(
    engine: Engine,
    site: SiteName,
    direction: Direction,
    columns: tuple[int | str, ...],
    rows: float,
) -> float:
    """Forward-pass equivalents that a screened sweep will cost beyond the cached passes, where all of its rows cost `rows`.

    Which cells rank first is not known before: they are counted as the mean of all.
    """
    layers = range(engine.backend.info.n_layers)
    if math.prod((len(layers), *_cell_shape(engine, site, columns))) <= MIN_RANKED + SAMPLE_SIZE:
        return rows
    gradient, able = 0.0, torch.zeros(())
    for _, block in engine.blocks():
        gradient += estimate_attributions(block)
        able = (
            able
            + torch.stack(
                [_can_change(block, engine, site, direction, layer, columns) for layer in layers]
            ).cpu()
        )
    places = int((able > 0).sum())
    by_rank = min(places, max(MIN_RANKED, math.ceil(RANKED_SHARE * places)))
    return gradient + rows * (by_rank + min(SAMPLE_SIZE, places - by_rank)) / max(places, 1)


def _cell_shape(engine: Engine, site: SiteName, columns: tuple[int | str, ...]) -> tuple[int, ...]:
    """The shape of a layer's cells; k and v have one for each key-value head."""
    info = engine.backend.info
    heads = (
        () if site in POSITION_SITES else (info.n_kv_heads if site in ("k", "v") else info.n_heads,)
    )
    return (*heads, len(columns)) if columns else heads


def _attribution_grid(
    block: Block,
    site: SiteName,
    found: Float[Tensor, "pair layer pos ..."],
    columns: tuple[int | str, ...],
) -> tuple[Float[Tensor, "pair layer ..."], Bool[Tensor, "pair layer ..."]]:
    """Attributions as cells of the sweep, 0 where a pair lacks the cell, and whether it has it."""
    width = found.shape[2]
    at = torch.arange(width, device=found.device)
    inside = (at < block.prompts.length.unsqueeze(1)) & (
        at >= block.prompts.first_difference.unsqueeze(1)
    )  # [pair pos]
    found = torch.where(inside.reshape(len(inside), 1, width, *[1] * (found.ndim - 3)), found, 0.0)
    if not columns:
        summed = found.sum(2)
        return summed, torch.ones_like(summed, dtype=torch.bool)
    positions, has = locate_columns(block, columns)  # [pair column]
    if site in POSITION_SITES:
        picked = found.gather(2, positions.unsqueeze(1).expand(-1, found.shape[1], -1))
        return torch.where(has.unsqueeze(1), picked, 0.0), has.unsqueeze(1).expand_as(picked)
    by_head = found.transpose(2, 3)  # [pair layer head pos]
    where = positions[:, None, None].expand(-1, *by_head.shape[1:3], -1)
    picked = by_head.gather(3, where)
    return torch.where(has[:, None, None], picked, 0.0), has[:, None, None].expand_as(picked)


def _can_change(
    block: Block,
    engine: Engine,
    site: SiteName,
    direction: Direction,
    layer: int,
    columns: tuple[int | str, ...],
) -> Bool[Tensor, "..."]:
    """Cells that some pair has a row for."""
    cells = build_cells(block, engine.backend, site, layer, direction, columns)
    out = torch.zeros(cells.exists.shape[1:], dtype=torch.bool, device=cells.exists.device)
    out[cells.index[1:]] = True
    return out
