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
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import hypergeom
from torch import Tensor

from discovery.engine import Block, Engine, attribute_sites, base_side, estimate_attributions
from discovery.methods.patching.cells import POSITION_SITES, build_all_cells, locate_columns
from discovery.sites import ActivationKind, Direction, SiteName

# The cells with the largest estimates are measured: this share of the cells that can change
# anything, but never fewer than MIN_RANKED.
RANKED_SHARE = 0.1
MIN_RANKED = 32
# Of the other cells, a random sample of this size is measured. If it holds no sizeable effect, at
# most about 5% of the other cells have one, with 95% confidence.
SAMPLE_SIZE = 59
MISSED_SHARE_CONFIDENCE = 0.95
SIZEABLE_EFFECT = 0.1  # an effect that should not be missed
# If the cost is limited, fewer cells with large estimates are measured, but never fewer than this.
MIN_RANKED_IF_LIMITED = 8


@dataclass(frozen=True, kw_only=True)
class ScreenRequest:
    """What a screened sweep may measure.

    Attributes:
        seed: the seed of the random sample.
        within: the cells that are asked for, with the shape of the grid; None means all of them.
        max_cost: the forward-pass equivalents that gradients and rows may take together. It bounds
            the number of cells measured by rank, of which at least MIN_RANKED_IF_LIMITED remain.
            None means no limit.
    """

    seed: int = 0
    within: Bool[Tensor, "layer ..."] | None = None
    max_cost: float | None = None


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


@dataclass(frozen=True, kw_only=True)
class ScreenPlan:
    """Which cells a screened sweep measures.

    Attributes:
        estimates: the normalised effect of every cell as the gradient estimates it.
        measured: the cells to measure, [layer …]. Cells that cannot change anything are included.
        by_rank: the part of `measured` that was chosen by estimate.
        at_random: the part of `measured` that was chosen at random.
        requested: the cells that are asked for; the others count neither as measured nor as left
            out.
    """

    estimates: Float[Tensor, "..."]
    measured: Bool[Tensor, "..."]
    by_rank: Bool[Tensor, "..."]
    at_random: Bool[Tensor, "..."]
    requested: Bool[Tensor, "..."]

    def report(self, values: Float[Tensor, "..."]) -> ScreenReport:
        """Conclude from the measured effects what the unmeasured cells may hold."""
        sample = values[self.at_random.to(values.device)].abs()
        n_unmeasured = int((self.requested & ~self.measured).sum())
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
    engine: Engine,
    site: SiteName,
    direction: Direction,
    columns: tuple[int | str, ...],
    request: ScreenRequest,
) -> ScreenPlan:
    """Estimate every cell of a grid by gradients, and choose the cells to measure.

    Args:
        engine: the model and the pairs.
        site: the site of the sweep.
        direction: denoising or noising.
        columns: what the position axis of the grid counts.
        request: which cells may be measured, and what they may cost.
    """
    shape = _grid_shape(engine, site, columns)
    requested = _requested_cells(engine, shape, request)
    if int(requested.sum()) <= MIN_RANKED + SAMPLE_SIZE:
        # All cells would be measured, so that estimates could decide nothing.
        no_estimates = torch.full_like(requested, float("nan"), dtype=torch.float32)
        return ScreenPlan(
            estimates=no_estimates,
            measured=requested,
            by_rank=requested,
            at_random=torch.zeros_like(requested),
            requested=requested,
        )
    estimates, can_change = _estimate_cells(engine, site, direction, columns)
    by_rank = torch.zeros_like(can_change)
    candidates = (can_change & requested).nonzero()
    size = estimates[can_change & requested].abs().nan_to_num()
    ranked = candidates[size.argsort(descending=True, stable=True)[: _count_ranked(candidates)]]
    if request.max_cost is not None:
        costs = _cell_costs(engine, site, direction, columns)
        remaining_cost = request.max_cost - _gradient_cost(engine)
        ranked = ranked[: _count_affordable(costs, candidates, ranked, remaining_cost)]
    by_rank[tuple(ranked.T)] = True
    rest = (can_change & requested & ~by_rank).nonzero()
    generator = random.Random(f"screen-{request.seed}")
    sample = generator.sample(range(len(rest)), min(SAMPLE_SIZE, len(rest)))
    at_random = torch.zeros_like(can_change)
    at_random[tuple(rest[sample].T)] = True
    return ScreenPlan(
        estimates=estimates,
        measured=requested & (~can_change | by_rank | at_random),
        by_rank=by_rank,
        at_random=at_random,
        requested=requested,
    )


def _requested_cells(
    engine: Engine, shape: tuple[int, ...], request: ScreenRequest
) -> Bool[Tensor, "layer ..."]:
    if request.within is not None:
        return request.within.to(engine.backend.device).expand(shape)
    return torch.ones(shape, dtype=torch.bool, device=engine.backend.device)


def _count_ranked(candidates: Int[Tensor, "cell axis"]) -> int:
    return max(MIN_RANKED, math.ceil(RANKED_SHARE * len(candidates)))


def _count_affordable(
    costs: Sequence[float],
    candidates: Int[Tensor, "cell axis"],
    ranked: Int[Tensor, "ranked axis"],
    remaining_cost: float,
) -> int:
    """Return how many of the ranked cells can be measured beside the random sample.

    Args:
        costs: the mean cost of a cell, by layer.
        candidates: the cells that can change anything, each with its layer first.
        ranked: those to measure by rank, the largest first.
        remaining_cost: the forward-pass equivalents that rows may take.
    """
    by_layer = torch.tensor(costs)
    mean_cost = float(by_layer[candidates[:, 0].cpu()].mean()) if len(candidates) else 0.0
    remaining_cost -= SAMPLE_SIZE * mean_cost
    spent = by_layer[ranked[:, 0].cpu()].cumsum(0)
    return max(int((spent <= remaining_cost).sum()), MIN_RANKED_IF_LIMITED)


def _gradient_cost(engine: Engine) -> float:
    return sum(estimate_attributions(block) for _, block in engine.blocks())


def _cell_costs(
    engine: Engine, site: SiteName, direction: Direction, columns: tuple[int | str, ...]
) -> list[float]:
    """Return for each layer what one of its cells costs on average, in every pair together."""
    n_layers = engine.backend.info.n_layers
    costs = [0.0] * n_layers
    has_row = [torch.zeros(()) for _ in range(n_layers)]
    for _, block in engine.blocks():
        layers = build_all_cells(block, engine.backend, site, direction, columns)
        block_has_row = _has_row(block, engine, site, direction, columns)
        for layer, cells in enumerate(layers):
            costs[layer] += block.estimate(cells.rows) if len(cells.rows) else 0.0
            has_row[layer] = has_row[layer] + block_has_row[layer].cpu()
    return [
        cost / max(int((n_blocks > 0).sum()), 1)
        for cost, n_blocks in zip(costs, has_row, strict=True)
    ]


def estimate_screen(
    engine: Engine,
    site: SiteName,
    direction: Direction,
    columns: tuple[int | str, ...],
    rows: float,
    request: ScreenRequest,
) -> float:
    """Return the forward-pass equivalents that a screened sweep costs beyond its cached passes.

    Which cells will rank highest is not known in advance: they are counted at the mean cost.

    Args:
        engine: the model and the pairs.
        site: the site of the sweep.
        direction: denoising or noising.
        columns: what the position axis of the grid counts.
        rows: the forward-pass equivalents that all rows of the requested cells cost.
        request: which cells may be measured, and what they may cost.
    """
    requested = _requested_cells(engine, _grid_shape(engine, site, columns), request)
    if int(requested.sum()) <= MIN_RANKED + SAMPLE_SIZE:
        return rows
    gradient_cost = 0.0
    n_blocks_with_row = torch.zeros(())
    for _, block in engine.blocks():
        gradient_cost += estimate_attributions(block)
        has_row = _has_row(block, engine, site, direction, columns)
        n_blocks_with_row = n_blocks_with_row + has_row.cpu()
    n_cells = int(((n_blocks_with_row > 0) & requested.cpu()).sum())
    n_ranked = min(n_cells, max(MIN_RANKED, math.ceil(RANKED_SHARE * n_cells)))
    mean_cost = rows / max(n_cells, 1)
    if request.max_cost is not None and mean_cost > 0:
        remaining_cost = request.max_cost - gradient_cost - SAMPLE_SIZE * mean_cost
        n_ranked = min(n_ranked, max(int(remaining_cost / mean_cost), MIN_RANKED_IF_LIMITED))
    n_measured = n_ranked + min(SAMPLE_SIZE, n_cells - n_ranked)
    return gradient_cost + n_measured * mean_cost


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
