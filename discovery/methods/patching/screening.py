"""A gradient screen for grids that are too expensive to measure whole.

Attribution patching with integrated gradients (`engine.gradients`) estimates every cell for the
price of a few passes. The cells with the largest estimates are then measured exactly, and so is a
random sample of the rest. A gradient can be blind if attention is saturated or if two parts stand
in for each other, so the sample is there to bound what was missed. Estimates are kept apart from
measurements and never replace them.
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

from discovery.engine import Block, Engine, attribute_sites, base_side, estimate_attributions
from discovery.methods.patching.cells import POSITION_SITES, build_all_cells, locate_columns
from discovery.sites import ActivationKind, Direction, SiteName

# Of the cells that can change anything, this share, and at least so many, are measured by rank.
RANKED_SHARE = 0.1
MIN_RANKED = 32
# So many of the rest are measured at random. If none of them is sizeable, at most about 5% of the
# rest are, with 95% confidence.
SAMPLE_SIZE = 59
MISSED_SHARE_CONFIDENCE = 0.95
SIZEABLE_EFFECT = 0.1  # an effect that should not be missed


@dataclass(frozen=True, kw_only=True)
class ScreenReport:
    """What a screened sweep measured, and what it may have missed.

    Attributes:
        estimates: the normalised effect of every cell as the gradient estimates it, with the shape
            of `Sweep.values`. These are not measurements.
        n_ranked: how many cells were measured because of their estimate.
        n_sampled: how many of the other cells were measured at random.
        n_unmeasured: how many cells were not measured. Cells that cannot change anything are known
            to be 0 and count as measured.
        largest_sampled: the largest absolute effect in the random sample; NaN if no sample was
            needed or its effects are not known.
        missed_share: with 95% confidence, at most this share of the unmeasured cells has an effect
            of 0.1 or more. It is 0 if every cell was measured, and 1 if the effects of the sample
            are not known (there was nothing to normalise by).
    """

    estimates: Float[Tensor, "..."]
    n_ranked: int
    n_sampled: int
    n_unmeasured: int
    largest_sampled: float
    missed_share: float

    @property
    def caution(self) -> str:
        """What a reader of the grid must know, in words."""
        if not self.n_unmeasured:
            return "screened: every cell was measured all the same."
        if math.isnan(self.largest_sampled):
            return (
                f"screened: {self.n_unmeasured} cells were not measured, and nothing bounds their "
                "effects: there is nothing to normalise by."
            )
        return (
            f"screened: {self.n_ranked} cells were measured because their gradient estimates are "
            f"the largest, and {self.n_sampled} at random. {self.n_unmeasured} cells were not "
            f"measured: with 95% confidence at most {self.missed_share:.0%} of them have an effect "
            f"of {SIZEABLE_EFFECT} or more. The largest effect in the random sample is "
            f"{self.largest_sampled:.3f}."
        )


@dataclass(frozen=True)
class ScreenPlan:
    """Which cells a screened sweep measures.

    Attributes:
        estimates: the normalised effect of every cell as the gradient estimates it.
        measured: the cells to measure, [layer …]. Cells that cannot change anything are included.
        by_rank: the part of `measured` that was chosen by estimate.
        at_random: the part of `measured` that was chosen at random.
    """

    estimates: Float[Tensor, "..."]
    measured: Bool[Tensor, "..."]
    by_rank: Bool[Tensor, "..."]
    at_random: Bool[Tensor, "..."]

    def report(self, values: Float[Tensor, "..."]) -> ScreenReport:
        """Conclude from the measured effects what the unmeasured cells may hold."""
        sample = values[self.at_random.to(values.device)].abs()
        n_unmeasured = int((~self.measured).sum())
        is_known = len(sample) > 0 and bool(sample.isfinite().all())
        missed_share = 1.0
        if not n_unmeasured:
            missed_share = 0.0
        elif is_known:
            n_sizeable = int((sample >= SIZEABLE_EFFECT).sum())
            missed_share = bound_missed_share(n_sizeable, len(sample), n_unmeasured)
        return ScreenReport(
            estimates=self.estimates,
            n_ranked=int(self.by_rank.sum()),
            n_sampled=len(sample),
            n_unmeasured=n_unmeasured,
            largest_sampled=float(sample.max()) if is_known else float("nan"),
            missed_share=missed_share,
        )


def bound_missed_share(
    n_found: int, n_drawn: int, n_rest: int, confidence: float = MISSED_SHARE_CONFIDENCE
) -> float:
    """Return an upper bound on the share of sizeable cells among those that were not drawn.

    It inverts the hypergeometric distribution: the bound is the largest share of the rest at which
    so few sizeable cells would still be drawn with a chance above 1 − confidence.

    Args:
        n_found: how many cells of the random sample are sizeable.
        n_drawn: how many cells the sample has.
        n_rest: how many cells were not drawn.
        confidence: with which the bound holds.
    """
    n_hidden = np.arange(n_rest + 1)  # how many sizeable cells the rest may hold
    chance = hypergeom.cdf(n_found, n_drawn + n_rest, n_found + n_hidden, n_drawn)
    return float(n_hidden[chance > 1 - confidence].max()) / n_rest


def plan_screen(
    engine: Engine, site: SiteName, direction: Direction, columns: tuple[int | str, ...], seed: int
) -> ScreenPlan:
    """Estimate every cell of a grid by gradients, and choose the cells to measure.

    Args:
        engine: the model and the pairs.
        site: the site of the sweep.
        direction: denoising or noising.
        columns: what the position axis of the grid counts.
        seed: of the random sample.
    """
    shape = _grid_shape(engine, site, columns)
    if math.prod(shape) <= MIN_RANKED + SAMPLE_SIZE:
        # All cells would be measured, so that estimates could decide nothing.
        everything = torch.ones(shape, dtype=torch.bool, device=engine.backend.device)
        no_estimates = torch.full_like(everything, float("nan"), dtype=torch.float32)
        return ScreenPlan(no_estimates, everything, everything, ~everything)
    estimates, can_change = _estimate_cells(engine, site, direction, columns)
    by_rank = torch.zeros_like(can_change)
    candidates = can_change.nonzero()
    size = estimates[can_change].abs().nan_to_num()
    n_ranked = max(MIN_RANKED, math.ceil(RANKED_SHARE * len(candidates)))
    ranked = candidates[size.argsort(descending=True, stable=True)[:n_ranked]]
    by_rank[tuple(ranked.T)] = True
    rest = (can_change & ~by_rank).nonzero()
    sample = random.Random(f"screen-{seed}").sample(range(len(rest)), min(SAMPLE_SIZE, len(rest)))
    at_random = torch.zeros_like(can_change)
    at_random[tuple(rest[sample].T)] = True
    return ScreenPlan(estimates, ~can_change | by_rank | at_random, by_rank, at_random)


def estimate_screen(
    engine: Engine,
    site: SiteName,
    direction: Direction,
    columns: tuple[int | str, ...],
    rows: float,
) -> float:
    """Return the forward-pass equivalents that a screened sweep costs beyond its cached passes.

    Which cells will rank highest is not known in advance: they are counted at the mean cost.

    Args:
        engine: the model and the pairs.
        site: the site of the sweep.
        direction: denoising or noising.
        columns: what the position axis of the grid counts.
        rows: the forward-pass equivalents that all rows of the whole grid cost.
    """
    if math.prod(_grid_shape(engine, site, columns)) <= MIN_RANKED + SAMPLE_SIZE:
        return rows
    gradient_cost = 0.0
    n_blocks_with_row = torch.zeros(())
    for _, block in engine.blocks():
        gradient_cost += estimate_attributions(block)
        has_row = _has_row(block, engine, site, direction, columns)
        n_blocks_with_row = n_blocks_with_row + has_row.cpu()
    n_cells = int((n_blocks_with_row > 0).sum())
    n_ranked = min(n_cells, max(MIN_RANKED, math.ceil(RANKED_SHARE * n_cells)))
    n_measured = n_ranked + min(SAMPLE_SIZE, n_cells - n_ranked)
    return gradient_cost + rows * n_measured / max(n_cells, 1)


def _grid_shape(engine: Engine, site: SiteName, columns: tuple[int | str, ...]) -> tuple[int, ...]:
    """Return the shape of the grid; k and v have a cell for each key-value head."""
    info = engine.backend.info
    shape = [info.n_layers]
    if site not in POSITION_SITES:
        shape.append(info.n_kv_heads if site in ("k", "v") else info.n_heads)
    if columns:
        shape.append(len(columns))
    return tuple(shape)


def _estimate_cells(
    engine: Engine, site: SiteName, direction: Direction, columns: tuple[int | str, ...]
) -> tuple[Float[Tensor, "layer ..."], Bool[Tensor, "layer ..."]]:
    """Estimate the normalised effect of every cell, and find the cells that can change anything."""
    # Every site name apart from head_out and head_out_by_position is an activation kind.
    kind: ActivationKind = "z" if site.startswith("head_out") else site  # type: ignore[assignment]
    base = base_side(direction)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []  # summed over pairs: change, gap; has a row
    for _, block in engine.blocks():
        attributions = attribute_sites(block, base, kind)
        change, exists = _attribution_grid(block, site, attributions, columns)
        gap = block.baseline("clean") - block.baseline("corrupted")
        gap_by_cell = gap.reshape(-1, *[1] * (change.ndim - 1))
        has_row = _has_row(block, engine, site, direction, columns)
        parts.append((change.sum(0), torch.where(exists, gap_by_cell, 0.0).sum(0), has_row))
    change_sum, gap_sum, n_blocks = (torch.stack(part).sum(0) for part in zip(*parts, strict=True))
    estimates = (change_sum if direction == "denoising" else -change_sum) / gap_sum
    return estimates, n_blocks > 0


def _attribution_grid(
    block: Block,
    site: SiteName,
    attributions: Float[Tensor, "pair layer pos ..."],
    columns: tuple[int | str, ...],
) -> tuple[Float[Tensor, "pair layer ..."], Bool[Tensor, "pair layer ..."]]:
    """Arrange attributions as the cells of the sweep.

    Returns:
        The attribution of each cell, 0 if the pair lacks the cell, and whether the pair has it.
    """
    width = attributions.shape[2]
    span = torch.arange(width, device=attributions.device)
    inside = (span < block.prompts.length.unsqueeze(1)) & (
        span >= block.prompts.first_difference.unsqueeze(1)
    )  # [pair pos]
    inside = inside.reshape(len(inside), 1, width, *[1] * (attributions.ndim - 3))
    attributions = torch.where(inside, attributions, 0.0)
    if not columns:
        summed = attributions.sum(2)
        return summed, torch.ones_like(summed, dtype=torch.bool)
    positions, exists = locate_columns(block, columns)  # [pair column]
    if site in POSITION_SITES:
        exists = exists.unsqueeze(1)
        index = positions.unsqueeze(1).expand(-1, attributions.shape[1], -1)
        cells = attributions.gather(2, index)
    else:
        exists = exists[:, None, None]
        by_head = attributions.transpose(2, 3)  # [pair layer head pos]
        index = positions[:, None, None].expand(-1, *by_head.shape[1:3], -1)
        cells = by_head.gather(3, index)
    return torch.where(exists, cells, 0.0), exists.expand_as(cells)


def _has_row(
    block: Block,
    engine: Engine,
    site: SiteName,
    direction: Direction,
    columns: tuple[int | str, ...],
) -> Bool[Tensor, "layer ..."]:
    """Find the cells that can change something in some pair of the block."""
    layers = []
    for cells in build_all_cells(block, engine.backend, site, direction, columns):
        has_row = torch.zeros(cells.exists.shape[1:], dtype=torch.bool, device=cells.exists.device)
        has_row[cells.index[1:]] = True
        layers.append(has_row)
    return torch.stack(layers)
