"""Intervals by resampling pairs within their template.

A ratio of means is resampled as a whole: the same draw of pairs enters numerator and denominator. All circuits are resampled
with the same draws, so that their intervals can be compared.

Templates hold few pairs each, and drawing as many as there are would understate the spread by (n − 1)/n in every one of them: 95% intervals
of 48 pairs then held the true value 86 to 91 times of 100. So one pair less is drawn, with the weight of all (Rao and Wu 1988, "Resampling
inference with complex survey data"), and the percentiles are those of a t distribution (Hesterberg 2015, arXiv 1411.5279).

Which cells of a grid differ from nothing, all cells at once? Sign-flip max-statistic (Nichols & Holmes 2002; Westfall & Young 1993).

If patching a cell did nothing, a pair's effect would be as likely to have the other sign. So the signs of whole pairs are flipped at
random, each time keeping the largest statistic of the grid: a cell is significant where its own is among the largest of these, and the
chance of one false cell anywhere is at most the level. Descriptive: it says that an effect is not noise, not that it matters.

    from discovery.methods.statistics import max_statistic
    max_statistic(effects)      # [pair cell] -> p [cell], corrected for looking at all cells
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy import stats
from torch import Tensor

from discovery.tasks.task import Task

BOOTSTRAP_DRAWS = 2000
CONFIDENCE_LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% percentile interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Resamples:
    """Draws of the same pairs, for intervals.

    Attributes:
        weights: of each pair in each draw; rows sum to 1, and each template has its share.
        degrees: of freedom: pairs less templates.
    """

    weights: Float[Tensor, "draw pair"]
    degrees_of_freedom: int

    @classmethod
    def of(cls, task: Task, draws: int = BOOTSTRAP_DRAWS, seed: int = 0) -> Resamples:
        """Resample a task's pairs within their templates, one pair less than each has."""
        groups = _group_by_template(task)
        return cls(_draw_weights(groups, draws, seed, fewer=1), len(task.pairs) - len(groups))

    @property
    def tail(self) -> float:
        """The share of draws below the interval: a normal distribution's at the t quantile."""
        return (
            float(stats.norm.cdf(stats.t.ppf((1 - CONFIDENCE_LEVEL) / 2, self.degrees_of_freedom)))
            if self.degrees_of_freedom
            else 0.0
        )


def draw_bootstrap_weights(
    task: Task, draws: int = BOOTSTRAP_DRAWS, seed: int = 0
) -> Float[Tensor, "draw pair"]:
    """The plain bootstrap, for a computation to be repeated on: how often each pair is drawn, divided by the number of pairs."""
    return _draw_weights(_group_by_template(task), draws, seed, fewer=0)


def _group_by_template(task: Task) -> list[list[int]]:
    """The pairs of each template, by number.

    Within a template of a single pair there is nothing to draw, and no uncertainty would be left: such pairs are drawn together.
    """
    counts = Counter(pair.template for pair in task.pairs)
    groups: dict[tuple[bool, str], list[int]] = defaultdict(list)
    for index, pair in enumerate(task.pairs):
        alone = counts[pair.template] == 1
        groups[alone, "" if alone else pair.template].append(index)
    return [groups[name] for name in sorted(groups)]


def _draw_weights(
    groups: list[list[int]], draws: int, seed: int, *, fewer: int
) -> Float[Tensor, "draw pair"]:
    """Weights of draws with replacement within each group, of so many less than it has."""
    generator, total = torch.Generator().manual_seed(seed), sum(map(len, groups))
    weights = torch.zeros(draws, total, dtype=torch.float64)
    for group in groups:
        members, count = torch.tensor(group), max(1, len(group) - fewer)
        picks = torch.randint(len(members), (draws, count), generator=generator)
        weights.scatter_add_(
            1, members[picks], torch.full(picks.shape, len(group) / count, dtype=torch.float64)
        )
    return weights / total


def interval_of_mean(values: Float[Tensor, "pair"], resamples: Resamples) -> Interval:
    """Mean over pairs; constant values give a zero-width interval."""
    values = values.double().cpu()
    return _interval(float(values.mean()), resamples.weights @ values, resamples.tail)


def interval_of_ratio(
    above: Float[Tensor, "pair"], below: Float[Tensor, "pair"], resamples: Resamples
) -> tuple[Interval, float]:
    """Mean of `above` over mean of `below`, and the median of its resamples."""
    above, below = above.double().cpu(), below.double().cpu()
    draws = (resamples.weights @ above) / (resamples.weights @ below)
    return _interval(float(above.mean() / below.mean()), draws, resamples.tail), float(
        draws.median()
    )


def _interval(value: float, draws: Float[Tensor, "draw"], tail: float) -> Interval:
    spread = float(draws.max() - draws.min())
    if spread <= 1e-9 * max(abs(value), 1e-300):  # constant data: rounding is not uncertainty
        return Interval(value, value, value)
    low, high = torch.quantile(draws, torch.tensor([tail, 1 - tail], dtype=draws.dtype)).tolist()
    return Interval(value, min(low, value), max(high, value))


MAX_STATISTIC_FLIPS = 10_000
FLIPS_PER_BATCH = 500  # flips at a time
ROUNDING = 1e-9


def max_statistic_test(
    effects: Float64[np.ndarray, "pair cell"], *, flips: int = MAX_STATISTIC_FLIPS, seed: int = 0
) -> Float64[np.ndarray, "cell"]:
    """p of each cell, corrected over all cells.

    The statistic is |Σ x| / √(Σ x²) over pairs: like t, of which it is a monotone function, and Σ x² does not change with the signs.

    Args:
        effects: one number a pair and cell, 0 being no effect; NaN where a pair lacks the cell.

    Returns:
        (1 + flips at which the grid's largest statistic is as large) / (1 + flips); 1 where a cell never differs from 0.
    """
    known = np.nan_to_num(effects, nan=0.0)
    size = np.sqrt((known**2).sum(0))
    live = size > 0
    scaled = np.divide(known, size, out=np.zeros_like(known), where=live)
    own = np.abs(scaled.sum(0))
    generator = np.random.default_rng(seed)
    larger = np.zeros(effects.shape[1])
    for begin in range(0, flips, FLIPS_PER_BATCH):
        signs = generator.choice(
            (-1.0, 1.0), size=(min(FLIPS_PER_BATCH, flips - begin), len(known))
        )
        largest = np.abs(signs @ scaled).max(1, initial=0.0)
        larger += (largest[:, None] >= own - ROUNDING).sum(0)
    found: Float64[np.ndarray, "cell"] = np.where(live, (1 + larger) / (1 + flips), 1.0)
    return found
