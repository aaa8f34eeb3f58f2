"""The pairs of one split, ready to be measured, and effects as a circuit record has them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend
from discovery.engine import Engine, Meter
from discovery.errors import MeasurementError
from discovery.features import SAE
from discovery.graph import Effect
from discovery.methods.features.arguments import PairPositions, Positions, resolve_positions
from discovery.methods.features.splice import cache_sites
from discovery.methods.statistics import Interval, Resamples, interval_of_mean, interval_of_ratio
from discovery.sites import MetricName
from discovery.tasks.task import Task

MIN_GAP = 1e-6


@dataclass(frozen=True)
class SplitMeasurement:
    """Some pairs of a task.

    Attributes:
        gap: m(clean) − m(corrupted) of each.
    """

    engine: Engine
    places: PairPositions
    resamples: Resamples
    gap: Float[Tensor, "pair"]

    @classmethod
    def of(
        cls,
        model: Backend,
        task: Task,
        sae: SAE,
        positions: Positions,
        *,
        metric: MetricName | None,
        memory: int | None,
        meter: Meter,
        seed: int,
    ) -> SplitMeasurement:
        """Cache what is needed.

        Raises:
            MeasurementError: where the sides do not differ, so that nothing is a share of their difference.
        """
        engine = Engine(model, task, metric=metric, memory=memory, meter=meter)
        places = resolve_positions(task, positions)
        cache_sites(engine, sae)
        gap = engine.baseline("clean") - engine.baseline("corrupted")
        if abs(float(gap.double().mean())) < MIN_GAP:
            raise MeasurementError(
                f"m(clean) and m(corrupted) of {len(task)} pairs do not differ, so no feature can have a share of the difference.",
                "Use a task whose corrupted prompts lack the behaviour.",
            )
        return cls(engine, places, Resamples.of(task, seed=seed), gap)

    def __len__(self) -> int:
        return len(self.engine)

    def share_of_gap(self, change: Float[Tensor, "pair"]) -> Effect:
        """A change of the metric as a share of m(clean) − m(corrupted): a ratio of means, with its interval."""
        return _effect(interval_of_ratio(change, self.gap, self.resamples)[0])

    def ratio_of_means(
        self, part: Float[Tensor, "pair"], whole: Float[Tensor, "pair"]
    ) -> Effect | None:
        """A ratio of means, with its interval; None where there is nothing to divide by, here or in a resample."""
        found = interval_of_ratio(part, whole, self.resamples)[0]
        return (
            _effect(found)
            if math.isfinite(found.mean) and math.isfinite(found.low) and math.isfinite(found.high)
            else None
        )

    def mean(self, values: Float[Tensor, "pair"]) -> Effect:
        """A mean over pairs in its own units, with its interval."""
        return _effect(interval_of_mean(values, self.resamples))


def excludes_zero(effect: Effect) -> bool:
    """Whether the interval lies on one side of 0."""
    return (
        effect.low is not None and effect.high is not None and (effect.low > 0 or effect.high < 0)
    )


def _effect(found: Interval) -> Effect:
    return Effect(mean=found.mean, low=found.low, high=found.high)
