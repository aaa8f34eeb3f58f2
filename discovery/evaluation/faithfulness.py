"""f(S) = (m(S) − m(∅)) / (m(U) − m(∅)) on one split under one ablation.

Means over the split's pairs first, then the ratio (Miller et al. 2024: a mean of ratios is ruled by a few prompts). f(U) = 1 and
f(∅) = 0 by definition. Where the lower bound of m(U) − m(∅) is not above 0 the ablation removes nothing, and f is null.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.engine import Engine
from discovery.evaluation import thresholds
from discovery.graph import AblationEvidence, Reference, Score
from discovery.methods.ablation import NodeSet, SetMetric, describe_reference
from discovery.methods.statistics import Resamples, interval_of_mean, interval_of_ratio
from discovery.sites import Ablation, Universe


class Faithfulness:
    """f of any sets of nodes.

    Attributes:
        sets: m(S), memoised. full, empty: m(U) and m(∅) of each pair.
        defined: whether f means anything here; `gap_low` is the lower bound of m(U) − m(∅).
    """

    def __init__(
        self,
        engine: Engine,
        ablation: Ablation,
        universe: Universe = "all",
        resamples: Resamples | None = None,
    ) -> None:
        self.engine, self.ablation = engine, ablation
        self.set_metric = SetMetric(engine, ablation, universe)
        self.everything = self.set_metric.everything
        self.resamples = Resamples.of(engine.task) if resamples is None else resamples
        self.full, self.empty = self._measure([self.everything, frozenset()])
        self.sign = (
            -1.0 if engine.metric == "kl_divergence" else 1.0
        )  # there, smaller is more of the behaviour
        gap = interval_of_mean(self.sign * (self.full - self.empty), self.resamples)
        self.gap_low = gap.low
        self.is_defined = gap.low > 0

    def __call__(
        self, sets: Sequence[NodeSet], label: str = "ablation", pairs: int | None = None
    ) -> Float[Tensor, "set"]:
        """f of each set, as point values.

        Args:
            pairs: over the first so many pairs only.
        """
        if not sets:
            return torch.empty(0, dtype=torch.float64)
        metric = self._measure(sets, label, pairs)
        full, empty = self.full[:pairs].mean(), self.empty[:pairs].mean()
        found: Tensor = (metric.mean(1) - empty) / (full - empty)
        return found

    @property
    def n_pairs(self) -> int:
        """How many pairs there are."""
        return len(self.engine)

    def per_pair_difference(self, one: NodeSet, other: NodeSet) -> Float[Tensor, "pair"]:
        """Each pair's share of f(one) − f(other): its mean is the difference."""
        first, second = self._measure([one, other])
        share: Tensor = (first - second) / (self.full.mean() - self.empty.mean())
        return share

    def score(self, kept: NodeSet, band: tuple[float, float]) -> Score | None:
        """f with its interval; None where f is null."""
        if not self.is_defined:
            return None
        metric = self._measure([kept])[0]
        interval, _ = interval_of_ratio(metric - self.empty, self.full - self.empty, self.resamples)
        single = (metric - self.empty) / (self.full - self.empty)
        single = single[single.isfinite()]
        share = (
            float(((single >= band[0]) & (single <= band[1])).double().mean())
            if len(single)
            else None
        )
        median = float(single.quantile(0.5)) if len(single) else None
        return Score(
            value=interval.mean,
            low=interval.low,
            high=interval.high,
            median=median,
            share_in_band=share,
        )

    def measure_circuit(self, circuit: NodeSet) -> AblationEvidence:
        """f(C), f(U∖C) and what they are relative to."""
        self.set_metric([circuit, self.everything - circuit], "circuit")
        return AblationEvidence(
            metric_full=float(self.full.mean()),
            metric_empty=float(self.empty.mean()),
            faithfulness=self.score(circuit, thresholds.FAITHFULNESS_BAND),
            knockout=self.score(self.everything - circuit, thresholds.KNOCKOUT_BAND),
            reference=Reference.model_validate(describe_reference(self.engine, self.ablation)),
        )

    def _measure(
        self, sets: Sequence[NodeSet], label: str = "ablation", pairs: int | None = None
    ) -> Float[Tensor, "set pair"]:
        return self.set_metric(sets, label, pairs).double().cpu()


class ResampledFaithfulness:
    """f with the pairs weighted as in one bootstrap resample; the sets are measured once for all resamples."""

    def __init__(self, f: Faithfulness, weights: Float[Tensor, "pair"]) -> None:
        self.faithfulness, self.weights = f, weights
        self.everything, self.is_defined = f.everything, f.is_defined
        self._empty = f.empty @ weights
        self._gap = f.full @ weights - self._empty

    def __call__(
        self, sets: Sequence[NodeSet], label: str = "ablation", pairs: int | None = None
    ) -> Float[Tensor, "set"]:
        """f of each set; with `pairs`, over the first so many as they are drawn here."""
        if not sets:
            return torch.empty(0, dtype=torch.float64)
        metric = self.faithfulness.set_metric(sets, label, pairs).double().cpu()
        if pairs is None:
            whole: Tensor = (metric @ self.weights - self._empty) / self._gap
            return whole
        weights = self.weights[:pairs] / self.weights[:pairs].sum()
        empty = self.faithfulness.empty[:pairs] @ weights
        part: Tensor = (metric @ weights - empty) / (
            self.faithfulness.full[:pairs] @ weights - empty
        )
        return part

    @property
    def n_pairs(self) -> int:
        """How many pairs there are."""
        return self.faithfulness.n_pairs
