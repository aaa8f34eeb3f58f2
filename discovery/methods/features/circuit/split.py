"""The pairs of one split, made ready for measuring, and effects in the form of a circuit record."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from discovery.engine import Engine
from discovery.errors import MeasurementError
from discovery.graph import Effect
from discovery.methods.features.reconstruction import MIN_GAP
from discovery.methods.features.splice import SplicedTask
from discovery.methods.statistics import Interval, interval_of_mean, interval_of_ratio


@dataclass(frozen=True)
class SplitMeasurement:
    """The pairs of one split, or of a whole task that is not split.

    Attributes:
        spliced: the pairs with the SAE.
        gap: m(clean) − m(corrupted) of each pair.
    """

    spliced: SplicedTask
    gap: Float[Tensor, "pair"]

    @classmethod
    def of(cls, spliced: SplicedTask) -> SplitMeasurement:
        """Run both sides of the pairs, and check that they differ.

        Raises:
            MeasurementError: if they do not differ on average, because effects are given as shares
                of their difference.
        """
        gap = spliced.engine.baseline("clean") - spliced.engine.baseline("corrupted")
        if abs(float(gap.double().mean())) < MIN_GAP:
            raise MeasurementError(
                f"m(clean) and m(corrupted) of {len(spliced.engine)} pairs do not differ, so no "
                "feature can have a share of the difference.",
                "Use a task whose corrupted prompts lack the behaviour.",
            )
        return cls(spliced, gap)

    def __len__(self) -> int:
        return len(self.engine)

    @property
    def engine(self) -> Engine:
        """The engine of these pairs."""
        return self.spliced.engine

    def share_of_gap(self, change: Float[Tensor, "pair"]) -> Effect:
        """Return a change of the metric as a share of m(clean) − m(corrupted), a ratio of means."""
        return _effect(interval_of_ratio(change, self.gap, self.spliced.resamples)[0])

    def ratio_of_means(
        self, part: Float[Tensor, "pair"], whole: Float[Tensor, "pair"]
    ) -> Effect | None:
        """Return a ratio of means, or None if a denominator is 0, in the data or in a resample."""
        ratio = interval_of_ratio(part, whole, self.spliced.resamples)[0]
        is_defined = all(map(math.isfinite, (ratio.mean, ratio.low, ratio.high)))
        return _effect(ratio) if is_defined else None

    def mean(self, values: Float[Tensor, "pair"]) -> Effect:
        """Return a mean over the pairs in its own units."""
        return _effect(interval_of_mean(values, self.spliced.resamples))


def excludes_zero(effect: Effect) -> bool:
    """Return whether the interval lies on one side of 0."""
    if effect.low is None or effect.high is None:
        return False
    return effect.low > 0 or effect.high < 0


def _effect(interval: Interval) -> Effect:
    return Effect(mean=interval.mean, low=interval.low, high=interval.high)
