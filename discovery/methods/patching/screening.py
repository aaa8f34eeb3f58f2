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

from discovery.engine import Block, Engine, Side, attribution_work, attributions
from discovery.methods.patching.cells import STREAM, cells_of, positions_of
from discovery.sites import ActivationKind, Direction, SiteName

SHARE, LEAST = 0.1, 32  # of the cells that can change anything, this share and at least so many are measured by rank ...
SAMPLE = 59  # ... and so many of the rest at random: with none above the threshold, about 5% of the rest may be, with 95% confidence
CONFIDENCE = 0.95
SIZEABLE = 0.1  # an effect that should not be missed


@dataclass(frozen=True)
class Screen:
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
    ranked: int
    sampled: int
    rest: int
    largest: float
    missed: float

    @property
    def caution(self) -> str:
        """In words."""
        if not self.rest:
            return "screened: every cell was measured all the same."
        if math.isnan(self.largest):
            return f"screened: {self.rest} cells were not measured, and nothing bounds their effects: there is nothing to normalise by."
        return (
            f"screened: {self.ranked} cells were measured for their gradient estimate and {self.sampled} at random, {self.rest} were not: "
            f"of those at most {self.missed:.0%} have an effect of {SIZEABLE} or more (95% confidence), the sample's largest is "
            f"{self.largest:.3f}."
        )


@dataclass(frozen=True)
class Chosen:
    """Which cells a screened sweep measures.

    Attributes:
        measured: [layer …], cells without effect by construction included. by_rank, at_random: disjoint parts of it.
    """

    estimates: Float[Tensor, "..."]
    measured: Bool[Tensor, "..."]
    by_rank: Bool[Tensor, "..."]
    at_random: Bool[Tensor, "..."]

    def report(self, values: Float[Tensor, "..."]) -> Screen:
        """What the measurements say of the cells that were left out."""
        sample = values[self.at_random.to(values.device)].abs()
        rest = int((~self.measured).sum())
        above = int((sample >= SIZEABLE).sum())
        known = len(sample) > 0 and bool(sample.isfinite().all())
        largest = float(sample.max()) if known else float("nan")
        missed = 0.0 if not rest else upper_share(above, len(sample), rest) if known else 1.0
        return Screen(self.estimates, int(self.by_rank.sum()), len(sample), rest, largest, missed)


def upper_share(found: int, drawn: int, rest: int, confidence: float = CONFIDENCE) -> float:
    """Upper bound of the share among what was not drawn, of a finite number: the hypergeometric distribution inverted.

    The largest share of the rest at which so few would still be found in the sample with a chance of 5%.
    """
    hidden = np.arange(rest + 1)  # how many of the rest there may be
    chance = hypergeom.cdf(found, drawn + rest, found + hidden, drawn)
    return float(hidden[chance > 1 - confidence].max()) / rest


def choose(engine: Engine, site: SiteName, direction: Direction, columns: tuple[int | str, ...], seed: int) -> Chosen:
    """Estimate every cell and choose those to measure."""
    base: Side = "corrupted" if direction == "denoising" else "clean"
    kind: ActivationKind = "z" if site.startswith("head_out") else site  # type: ignore[assignment]  # the rest are kinds
    shape = (engine.backend.info.n_layers, *_cells(engine, site, columns))
    if math.prod(shape) <= LEAST + SAMPLE:  # all of them would be measured: a gradient decides nothing
        everything = torch.ones(shape, dtype=torch.bool, device=engine.backend.device)
        return Chosen(torch.full_like(everything, float("nan"), dtype=torch.float32), everything, everything, ~everything)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []  # summed over pairs: change, gap; any: can change
    for _, block in engine.blocks():
        found, exists = _grid(block, site, attributions(block, base, kind), columns)
        gap = (block.baseline("clean") - block.baseline("corrupted")).reshape(-1, *[1] * (found.ndim - 1))
        can = torch.stack([_can_change(block, engine, site, direction, layer, columns) for layer in range(found.shape[1])])
        parts.append((found.sum(0), torch.where(exists, gap, 0.0).sum(0), can))
    change, gaps, active = (torch.stack(part).sum(0) for part in zip(*parts, strict=True))
    active = active > 0
    estimates = (change if direction == "denoising" else -change) / gaps
    by_rank = torch.zeros_like(active)
    places = active.nonzero()
    size = estimates[active].abs().nan_to_num()
    best = size.argsort(descending=True, stable=True)[: max(LEAST, math.ceil(SHARE * len(places)))]
    by_rank[tuple(places[best].T)] = True
    left = (active & ~by_rank).nonzero()
    drawn = random.Random(f"screen-{seed}").sample(range(len(left)), min(SAMPLE, len(left)))
    at_random = torch.zeros_like(active)
    at_random[tuple(left[drawn].T)] = True
    return Chosen(estimates, ~active | by_rank | at_random, by_rank, at_random)


def estimate_screen(engine: Engine, site: SiteName, direction: Direction, columns: tuple[int | str, ...], rows: float) -> float:
    """Forward-pass equivalents that a screened sweep will cost beyond the cached passes, where all of its rows cost `rows`.

    Which cells rank first is not known before: they are counted as the mean of all.
    """
    layers = range(engine.backend.info.n_layers)
    if math.prod((len(layers), *_cells(engine, site, columns))) <= LEAST + SAMPLE:
        return rows
    gradient, able = 0.0, torch.zeros(())
    for _, block in engine.blocks():
        gradient += attribution_work(block)
        able = able + torch.stack([_can_change(block, engine, site, direction, layer, columns) for layer in layers]).cpu()
    places = int((able > 0).sum())
    by_rank = min(places, max(LEAST, math.ceil(SHARE * places)))
    return gradient + rows * (by_rank + min(SAMPLE, places - by_rank)) / max(places, 1)


def _cells(engine: Engine, site: SiteName, columns: tuple[int | str, ...]) -> tuple[int, ...]:
    """The shape of a layer's cells; k and v have one for each key-value head."""
    info = engine.backend.info
    heads = () if site in STREAM else (info.n_kv_heads if site in ("k", "v") else info.n_heads,)
    return (*heads, len(columns)) if columns else heads


def _grid(
    block: Block, site: SiteName, found: Float[Tensor, "pair layer pos ..."], columns: tuple[int | str, ...]
) -> tuple[Float[Tensor, "pair layer ..."], Bool[Tensor, "pair layer ..."]]:
    """Attributions as cells of the sweep, 0 where a pair lacks the cell, and whether it has it."""
    width = found.shape[2]
    at = torch.arange(width, device=found.device)
    inside = (at < block.prompts.length.unsqueeze(1)) & (at >= block.prompts.first.unsqueeze(1))  # [pair pos]
    found = torch.where(inside.reshape(len(inside), 1, width, *[1] * (found.ndim - 3)), found, 0.0)
    if not columns:
        summed = found.sum(2)
        return summed, torch.ones_like(summed, dtype=torch.bool)
    positions, has = positions_of(block, columns)  # [pair column]
    if site in STREAM:
        picked = found.gather(2, positions.unsqueeze(1).expand(-1, found.shape[1], -1))
        return torch.where(has.unsqueeze(1), picked, 0.0), has.unsqueeze(1).expand_as(picked)
    by_head = found.transpose(2, 3)  # [pair layer head pos]
    where = positions[:, None, None].expand(-1, *by_head.shape[1:3], -1)
    picked = by_head.gather(3, where)
    return torch.where(has[:, None, None], picked, 0.0), has[:, None, None].expand_as(picked)


def _can_change(
    block: Block, engine: Engine, site: SiteName, direction: Direction, layer: int, columns: tuple[int | str, ...]
) -> Bool[Tensor, "..."]:
    """Cells that some pair has a row for."""
    cells = cells_of(block, engine.backend, site, layer, direction, columns)
    out = torch.zeros(cells.exists.shape[1:], dtype=torch.bool, device=cells.exists.device)
    out[cells.place[1:]] = True
    return out
