"""Intervals over pairs, and corrections for testing many things at once.

*Intervals* resample pairs within their template. A ratio of means is resampled as a whole: the same
draw of pairs enters numerator and denominator. All circuits are resampled with the same draws, so
that their intervals can be compared. Drawing n pairs from a template of n understates the variance
by a factor of (n − 1)/n, and a template holds few pairs: 95% intervals of 48 pairs then covered the
true value only 86 to 91 times of 100. Therefore n − 1 pairs are drawn and weighted as n (Rao and Wu
1988, "Resampling inference with complex survey data"), and the percentiles are those of a t
distribution (Hesterberg 2015, arXiv 1411.5279).

*Tests* flip the signs of differences at random: if a patch or an ablation did nothing, the effect
of a pair would be as likely to have the other sign. `sign_flip_test` tests one mean, and `holm`
corrects several p-values. `max_statistic_test` tests all cells of a grid at once (Nichols & Holmes
2002; Westfall & Young 1993): each flip keeps the largest statistic of the whole grid, and a cell is
significant if its own is among the largest of these. The chance of one false cell anywhere is then
at most the level. A significant effect is not noise; that does not make it important.

    from discovery.methods.statistics import max_statistic_test
    max_statistic_test(effects)      # [pair cell] -> p [cell], corrected for all cells
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy import stats
from torch import Tensor

from discovery.graph import Effect
from discovery.tasks.task import Task

BOOTSTRAP_DRAWS = 2000
CONFIDENCE_LEVEL = 0.95

SIGN_FLIPS = 10_000
MAX_STATISTIC_FLIPS = 10_000
FLIPS_PER_BATCH = 500
ROUNDING = 1e-9  # statistics that differ by less are equal


@dataclass(frozen=True)
class Interval:
    """A mean, or a ratio of means, with its 95% interval.

    Attributes:
        mean: the mean or ratio over all pairs.
        low: the lower end of the interval; never above `mean`.
        high: the upper end of the interval; never below `mean`.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Resamples:
    """Draws of a task's pairs, from which intervals are computed.

    Attributes:
        weights: the weight of each pair in each draw. The weights of a draw sum to 1, and every
            template has its share of them.
        degrees_of_freedom: the number of pairs less the number of templates.
    """

    weights: Float[Tensor, "draw pair"]
    degrees_of_freedom: int

    @classmethod
    def of(cls, task: Task, draws: int = BOOTSTRAP_DRAWS, seed: int = 0) -> Resamples:
        """Draw a task's pairs within their templates, one pair less than each template has."""
        groups = _group_by_template(task)
        weights = _draw_weights(groups, draws, seed, n_left_out=1)
        return cls(weights, len(task.pairs) - len(groups))

    @property
    def tail(self) -> float:
        """The share of draws below the interval: Φ at the t quantile of (1 − level) / 2."""
        if not self.degrees_of_freedom:
            return 0.0
        quantile = stats.t.ppf((1 - CONFIDENCE_LEVEL) / 2, self.degrees_of_freedom)
        return float(stats.norm.cdf(quantile))


def draw_bootstrap_weights(
    task: Task, draws: int = BOOTSTRAP_DRAWS, seed: int = 0
) -> Float[Tensor, "draw pair"]:
    """Draw plain bootstrap resamples, for a computation that is to be repeated on them.

    Returns:
        How often each pair is drawn, divided by the number of pairs.
    """
    return _draw_weights(_group_by_template(task), draws, seed, n_left_out=0)


def _group_by_template(task: Task) -> list[list[int]]:
    """Group the numbers of the pairs by template.

    Pairs that are alone in their template form one group: a template of one pair leaves nothing to
    draw, and the interval would show no uncertainty.
    """
    counts = Counter(pair.template for pair in task.pairs)
    groups: dict[tuple[bool, str], list[int]] = defaultdict(list)
    for index, pair in enumerate(task.pairs):
        is_alone = counts[pair.template] == 1
        groups[is_alone, "" if is_alone else pair.template].append(index)
    return [groups[name] for name in sorted(groups)]


def _draw_weights(
    groups: list[list[int]], draws: int, seed: int, *, n_left_out: int
) -> Float[Tensor, "draw pair"]:
    """Draw with replacement within each group, `n_left_out` fewer members than it has."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(map(len, groups))
    weights = torch.zeros(draws, total, dtype=torch.float64)
    for group in groups:
        members = torch.tensor(group)
        count = max(1, len(group) - n_left_out)
        picks = torch.randint(len(members), (draws, count), generator=generator)
        weight = torch.full(picks.shape, len(group) / count, dtype=torch.float64)
        weights.scatter_add_(1, members[picks], weight)
    return weights / total


def interval_of_mean(values: Float[Tensor, "pair"], resamples: Resamples) -> Interval:
    """Return the mean over pairs with its interval; constant values give one of zero width."""
    values = values.double().cpu()
    return _interval(float(values.mean()), resamples.weights @ values, resamples.tail)


def interval_of_ratio(
    above: Float[Tensor, "pair"], below: Float[Tensor, "pair"], resamples: Resamples
) -> tuple[Interval, float]:
    """Return mean `above` over mean `below` with its interval, and the median of the draws."""
    above = above.double().cpu()
    below = below.double().cpu()
    draws = (resamples.weights @ above) / (resamples.weights @ below)
    interval = _interval(float(above.mean() / below.mean()), draws, resamples.tail)
    return interval, float(draws.median())


def effect_with_interval(
    change: Float[Tensor, "pair"], gap: Float[Tensor, "pair"], resamples: Resamples
) -> Effect:
    """Return a normalised effect, mean change over mean gap, with its interval.

    Args:
        change: how far the metric of each pair moved (see `patching.effect_change`).
        gap: m(clean) − m(corrupted) of each pair.
        resamples: draws of the same pairs.
    """
    interval, _ = interval_of_ratio(change, gap, resamples)
    return Effect(mean=interval.mean, low=interval.low, high=interval.high)


def _interval(value: float, draws: Float[Tensor, "draw"], tail: float) -> Interval:
    spread = float(draws.max() - draws.min())
    if spread <= 1e-9 * max(abs(value), 1e-300):  # constant data: rounding is not uncertainty
        return Interval(value, value, value)
    low, high = torch.quantile(draws, torch.tensor([tail, 1 - tail], dtype=draws.dtype)).tolist()
    return Interval(value, min(low, value), max(high, value))


def sign_flip_test(
    differences: Float64[np.ndarray, "pair"], seed: int, flips: int = SIGN_FLIPS
) -> float:
    """Return the two-sided p of a paired sign-flip test on the mean.

    Args:
        differences: one number a pair, 0 being no effect.
        seed: of the random signs.
        flips: how many random signs are drawn; all of them are tried if there are no more.

    Returns:
        How often random signs give a mean that is at least as large. It is 1 for a single pair,
        whose mean has the same size with either sign.
    """
    if len(differences) < 2 or not np.any(differences):
        return 1.0
    test = stats.permutation_test(
        (differences,),
        _mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=flips,
        alternative="two-sided",
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(values.mean(axis=axis))


def sign_flip_tests(
    differences: Float64[np.ndarray, "pair row"], seed: int, flips: int = SIGN_FLIPS
) -> Float64[np.ndarray, "row"]:
    """Return the two-sided p of a paired sign-flip test on the mean, for many rows at once.

    All rows are tested with the same random signs, so that thousands of flips cost one product of
    matrices. A row's p does not depend on the other rows.

    Args:
        differences: one number a pair and row, 0 being no effect.
        seed: of the random signs.
        flips: how many random signs are drawn; all 2^n are tried if there are no more.

    Returns:
        The share of signs that give a mean at least as large: of all signs, or
        (1 + number of drawn signs) / (1 + flips). It is 1 for a row of zeros, and for a single
        pair.
    """
    n_pairs = len(differences)
    observed = np.abs(differences.sum(0))
    tie = ROUNDING * np.abs(differences).sum(0)
    counts = np.zeros(differences.shape[1])
    is_exact = 2**n_pairs <= flips
    total = 2**n_pairs if is_exact else flips
    generator = np.random.default_rng(seed)
    for begin in range(0, total, FLIPS_PER_BATCH):
        size = min(FLIPS_PER_BATCH, total - begin)
        if is_exact:
            numbers = np.arange(begin, begin + size)[:, None]
            signs = 1.0 - 2.0 * (numbers >> np.arange(n_pairs)[None] & 1)
        else:
            signs = 1.0 - 2.0 * generator.integers(0, 2, (size, n_pairs))
        counts += (np.abs(signs @ differences) >= observed - tie).sum(0)
    p_values: Float64[np.ndarray, "row"] = counts / total
    if not is_exact:
        p_values = (1 + counts) / (1 + total)
    return p_values


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number by Holm's step-down method."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    running_max = 0.0
    for rank, index in enumerate(order):
        running_max = max(running_max, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running_max
    return corrected


def max_statistic_test(
    effects: Float64[np.ndarray, "pair cell"], *, flips: int = MAX_STATISTIC_FLIPS, seed: int = 0
) -> Float64[np.ndarray, "cell"]:
    """Return the p of each cell, corrected for looking at all cells.

    The statistic is |Σ x| / √(Σ x²) over pairs. It is a monotone function of t, and Σ x² does not
    change with the signs.

    Args:
        effects: one number a pair and cell, 0 being no effect; NaN if a pair lacks the cell.
        flips: how many random signs are drawn.
        seed: of the random signs.

    Returns:
        (1 + number of flips at which the largest statistic of the grid is at least as large) /
        (1 + flips), and 1 for a cell that never differs from 0.
    """
    known = np.nan_to_num(effects, nan=0.0)
    scale = np.sqrt((known**2).sum(0))
    is_nonzero = scale > 0
    scaled = np.divide(known, scale, out=np.zeros_like(known), where=is_nonzero)
    observed = np.abs(scaled.sum(0))
    generator = np.random.default_rng(seed)
    n_as_large = np.zeros(effects.shape[1])
    for begin in range(0, flips, FLIPS_PER_BATCH):
        size = (min(FLIPS_PER_BATCH, flips - begin), len(known))
        signs = generator.choice((-1.0, 1.0), size=size)
        largest = np.abs(signs @ scaled).max(1, initial=0.0)
        n_as_large += (largest[:, None] >= observed - ROUNDING).sum(0)
    p_values: Float64[np.ndarray, "cell"] = np.where(
        is_nonzero, (1 + n_as_large) / (1 + flips), 1.0
    )
    return p_values
