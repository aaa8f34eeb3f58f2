"""Intervals by resampling pairs within their template.

A ratio of means is resampled as a whole: the same draw of pairs enters numerator and denominator. All circuits are resampled
with the same draws, so that their intervals can be compared.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.tasks.task import Task

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% percentile interval."""

    mean: float
    low: float
    high: float


def template_weights(task: Task, draws: int = DRAWS, seed: int = 0) -> Float[Tensor, "draw pair"]:
    """How often each pair is drawn in each resample, divided by the number of pairs; rows sum to 1.

    Pairs are drawn with replacement within their template, so every resample has each template's share. Within a template of a single
    pair there is nothing to draw, and no uncertainty would be left: such pairs are drawn together, as one template.
    """
    counts = Counter(pair.template for pair in task.pairs)
    groups: dict[tuple[bool, str], list[int]] = defaultdict(list)
    for index, pair in enumerate(task.pairs):
        alone = counts[pair.template] == 1
        groups[alone, "" if alone else pair.template].append(index)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(draws, len(task.pairs), dtype=torch.float64)
    for name in sorted(groups):
        members = torch.tensor(groups[name])
        picks = torch.randint(len(members), (draws, len(members)), generator=generator)
        weights.scatter_add_(1, members[picks], torch.ones_like(picks, dtype=torch.float64))
    return weights / len(task.pairs)


def interval_of_mean(values: Float[Tensor, "pair"], weights: Float[Tensor, "draw pair"]) -> Interval:
    """Mean over pairs; constant values give a zero-width interval."""
    values = values.double().cpu()
    return _interval(float(values.mean()), weights @ values)


def interval_of_ratio(
    above: Float[Tensor, "pair"], below: Float[Tensor, "pair"], weights: Float[Tensor, "draw pair"]
) -> tuple[Interval, float]:
    """Mean of `above` over mean of `below`, and the median of its resamples."""
    above, below = above.double().cpu(), below.double().cpu()
    draws = (weights @ above) / (weights @ below)
    return _interval(float(above.mean() / below.mean()), draws), float(draws.median())


def _interval(value: float, draws: Float[Tensor, "draw"]) -> Interval:
    spread = float(draws.max() - draws.min())
    if spread <= 1e-9 * max(abs(value), 1e-300):  # constant data: rounding is not uncertainty
        return Interval(value, value, value)
    edges = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=draws.dtype)
    low, high = torch.quantile(draws, edges).tolist()
    return Interval(value, min(low, value), max(high, value))
