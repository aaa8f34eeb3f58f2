"""f(S) = (m(S) − m(∅)) / (m(U) − m(∅)): how much of the behaviour a set of nodes keeps.

m(S) is the metric with every node outside S ablated (see `methods.ablation`), U the universe of
heads and MLPs. f is measured on one split under one ablation. Means over the split's pairs come
first, then the ratio, because a mean of ratios is ruled by a few prompts (Miller et al. 2024).
f(U) = 1 and f(∅) = 0 by definition. If the lower bound of m(U) − m(∅) is not above 0, the ablation
removes nothing, and f is null.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend
from discovery.engine import Engine, Meter, ReferenceMeans, new_reference
from discovery.evaluation import thresholds
from discovery.graph import (
    EVIDENCE_ABLATIONS,
    RULES_VERSION,
    AblationEvidence,
    EvidenceAblation,
    RulesVersion,
    Score,
)
from discovery.methods.ablation import NodeSet, SetMetric, describe_reference
from discovery.methods.reference_agreement import ReferenceAgreement, reference_agreement
from discovery.methods.statistics import Resamples, interval_of_mean, interval_of_ratio
from discovery.sites import Ablation, MetricName, Universe
from discovery.tasks.task import SplitName, Task


@runtime_checkable
class SetFunction(Protocol):
    """f as the search and the conditions use it, whether measured plainly or on a resample."""

    @property
    def everything(self) -> NodeSet:
        """The universe."""
        ...

    @property
    def is_defined(self) -> bool:
        """Whether f means anything under this ablation."""
        ...

    @property
    def n_pairs(self) -> int:
        """The number of pairs."""
        ...

    def __call__(
        self, sets: Sequence[NodeSet], label: str = "ablation", pairs: int | None = None
    ) -> Float[Tensor, "set"]:
        """Return f of each set, over all pairs or the first so many."""
        ...


FaithfulnessByAblation = Mapping[EvidenceAblation, SetFunction]


class Faithfulness:
    """f of any sets of nodes, on the pairs of one engine under one ablation.

    Attributes:
        engine: the model and the pairs.
        ablation: resample, mean or zero.
        set_metric: m(S), each set measured once.
        everything: the universe.
        resamples: draws of the pairs, for intervals.
        full: m(U) of each pair.
        empty: m(∅) of each pair.
        sign: −1 for a metric of which less means more of the behaviour, else 1.
        gap_low: the lower bound of m(U) − m(∅), times `sign`.
        is_defined: whether that bound is above 0; f is null if not.
    """

    def __init__(
        self,
        engine: Engine,
        ablation: Ablation,
        universe: Universe = "all",
        resamples: Resamples | None = None,
    ) -> None:
        """Measure m(U) and m(∅).

        Raises:
            MeasurementError: if the ablation is unknown.
            BudgetError: if the engine's meter has a budget that does not suffice.
        """
        self.engine = engine
        self.ablation = ablation
        self.set_metric = SetMetric(engine, ablation, universe)
        self.everything = self.set_metric.everything
        self.resamples = Resamples.of(engine.task) if resamples is None else resamples
        self.full, self.empty = self._measure([self.everything, frozenset()])
        self.sign = -1.0 if engine.metric == "kl_divergence" else 1.0
        gap = interval_of_mean(self.sign * (self.full - self.empty), self.resamples)
        self.gap_low = gap.low
        self.is_defined = gap.low > 0

    def __call__(
        self, sets: Sequence[NodeSet], label: str = "ablation", pairs: int | None = None
    ) -> Float[Tensor, "set"]:
        """Return f of each set, as point values.

        Args:
            sets: the sets of nodes that are kept.
            label: names the work for progress and errors.
            pairs: measure only the first so many pairs.

        Raises:
            BudgetError: if the meter's budget does not suffice.
        """
        if not sets:
            return torch.empty(0, dtype=torch.float64)
        metric = self._measure(sets, label, pairs)
        full = self.full[:pairs].mean()
        empty = self.empty[:pairs].mean()
        values: Tensor = (metric.mean(1) - empty) / (full - empty)
        return values

    @property
    def n_pairs(self) -> int:
        """The number of pairs."""
        return len(self.engine)

    def per_pair_difference(self, first: NodeSet, second: NodeSet) -> Float[Tensor, "pair"]:
        """Return what each pair adds to f(first) − f(second); the mean is that difference."""
        metric_first, metric_second = self._measure([first, second])
        share: Tensor = (metric_first - metric_second) / (self.full.mean() - self.empty.mean())
        return share

    def score(self, node_set: NodeSet, band: tuple[float, float]) -> Score | None:
        """Return f of a set with its interval; None if f is null.

        Args:
            node_set: the nodes that are kept.
            band: the bounds for which the score counts the pairs inside.
        """
        if not self.is_defined:
            return None
        metric = self._measure([node_set])[0]
        interval, _ = interval_of_ratio(metric - self.empty, self.full - self.empty, self.resamples)
        per_pair = (metric - self.empty) / (self.full - self.empty)
        per_pair = per_pair[per_pair.isfinite()]
        median = None
        share_in_band = None
        if len(per_pair):
            is_inside = (per_pair >= band[0]) & (per_pair <= band[1])
            median = float(per_pair.quantile(0.5))
            share_in_band = float(is_inside.double().mean())
        return Score(
            value=interval.mean,
            low=interval.low,
            high=interval.high,
            median=median,
            share_in_band=share_in_band,
        )

    def measure_circuit(self, circuit: NodeSet) -> AblationEvidence:
        """Measure f(C) and f(U∖C), and say what they are relative to."""
        self.set_metric([circuit, self.everything - circuit], "circuit")
        return AblationEvidence(
            metric_full=float(self.full.mean()),
            metric_empty=float(self.empty.mean()),
            faithfulness=self.score(circuit, thresholds.FAITHFULNESS_BAND),
            knockout=self.score(self.everything - circuit, thresholds.KNOCKOUT_BAND),
            reference=describe_reference(self.engine, self.ablation),
        )

    def _measure(
        self, sets: Sequence[NodeSet], label: str = "ablation", pairs: int | None = None
    ) -> Float[Tensor, "set pair"]:
        return self.set_metric(sets, label, pairs).double().cpu()


class ResampledFaithfulness:
    """f with the pairs weighted as in one bootstrap resample.

    The sets are measured once for all resamples.

    Attributes:
        faithfulness: f on the pairs themselves.
        weights: the weight of each pair; they sum to 1.
        everything: the universe.
        is_defined: whether f means anything under this ablation.
    """

    def __init__(self, f: Faithfulness, weights: Float[Tensor, "pair"]) -> None:
        self.faithfulness = f
        self.weights = weights
        self.everything = f.everything
        self.is_defined = f.is_defined
        self._empty = f.empty @ weights
        self._gap = f.full @ weights - self._empty

    def __call__(
        self, sets: Sequence[NodeSet], label: str = "ablation", pairs: int | None = None
    ) -> Float[Tensor, "set"]:
        """Return f of each set.

        With `pairs`, use only that many pairs, each weighted by how often the resample drew it.

        Raises:
            BudgetError: if the meter's budget does not suffice.
        """
        if not sets:
            return torch.empty(0, dtype=torch.float64)
        metric = self.faithfulness.set_metric(sets, label, pairs).double().cpu()
        if pairs is None:
            on_all_pairs: Tensor = (metric @ self.weights - self._empty) / self._gap
            return on_all_pairs
        weights = self.weights[:pairs] / self.weights[:pairs].sum()
        empty = self.faithfulness.empty[:pairs] @ weights
        gap = self.faithfulness.full[:pairs] @ weights - empty
        on_first_pairs: Tensor = (metric @ weights - empty) / gap
        return on_first_pairs

    @property
    def n_pairs(self) -> int:
        """The number of pairs."""
        return self.faithfulness.n_pairs


class SplitEvaluator:
    """One split, ready to be evaluated on: its engine, and f under each ablation.

    Attributes:
        engine: the model and the split's pairs.
        universe: what can be ablated.
    """

    def __init__(self, engine: Engine, universe: Universe) -> None:
        self.engine = engine
        self.universe = universe
        self._f_by_ablation: dict[EvidenceAblation, Faithfulness] = {}
        self._agreements: dict[NodeSet, ReferenceAgreement] = {}

    @classmethod
    def of(
        cls,
        model: Backend,
        task: Task,
        universe: Universe,
        seed: int,
        *,
        metric: MetricName | None,
        memory: int | None,
        meter: Meter,
        rules: RulesVersion = RULES_VERSION,
        reference: ReferenceMeans | None = None,
    ) -> SplitEvaluator:
        """Prepare a split's pairs, in an order drawn by seed.

        The first so many pairs are then a fair sample of all of them.

        Args:
            model: the model.
            task: the pairs of the split.
            universe: what can be ablated.
            seed: draws the order.
            metric: what is measured; None means the task's own metric.
            memory: bytes that caches and batches may take; None means a share of what is free.
            meter: counts the work.
            rules: the version of the evaluation rules that means follow.
            reference: the means of mean ablation, if both splits share them.
        """
        order = list(range(len(task.pairs)))
        random.Random(f"order-{seed}").shuffle(order)
        shuffled = replace(
            task,
            pairs=tuple(task.pairs[i] for i in order),
            splits=tuple(task.splits[i] for i in order),
        )
        engine = Engine(
            model,
            shuffled,
            metric=metric,
            memory=memory,
            meter=meter,
            rules=rules,
            reference=reference if rules > 1 else None,
        )
        return cls(engine, universe)

    @classmethod
    def of_task(
        cls,
        model: Backend,
        task: Task,
        universe: Universe,
        seed: int,
        *,
        metric: MetricName | None,
        memory: int | None,
        meter: Meter,
        rules: RulesVersion = RULES_VERSION,
    ) -> dict[SplitName, SplitEvaluator]:
        """Prepare every split of a task that has pairs; they share the means of mean ablation.

        The arguments are those of `of`.
        """
        reference = new_reference(model, task, meter=meter, memory=memory, rules=rules)
        parts: dict[SplitName, Task] = {"discovery": task.discovery, "heldout": task.heldout}
        return {
            name: cls.of(
                model,
                part,
                universe,
                seed,
                metric=metric,
                memory=memory,
                meter=meter,
                rules=rules,
                reference=reference,
            )
            for name, part in parts.items()
            if part.pairs
        }

    def first(self, n_pairs: int) -> SplitEvaluator:
        """Return an evaluator of the first so many pairs; itself if there are no more."""
        task = self.engine.task
        if len(task.pairs) <= n_pairs:
            return self
        part = replace(task, pairs=task.pairs[:n_pairs], splits=task.splits[:n_pairs])
        engine = Engine(
            self.engine.backend,
            part,
            metric=self.engine.metric,
            memory=self.engine.memory,
            meter=self.engine.meter,
            rules=self.engine.rules,
            reference=self.engine.reference if self.engine.rules > 1 else None,
        )
        return SplitEvaluator(engine, self.universe)

    def f(self, ablation: EvidenceAblation) -> Faithfulness:
        """Return f under an ablation; m(U) and m(∅) are measured when it is first asked for."""
        if ablation not in self._f_by_ablation:
            self._f_by_ablation[ablation] = Faithfulness(self.engine, ablation, self.universe)
        return self._f_by_ablation[ablation]

    def forget_means(self) -> None:
        """Forget what was measured under mean ablation, because there are more prompts now."""
        self._f_by_ablation.pop("mean", None)
        self._agreements.clear()

    def reference_agreement(self, node_set: NodeSet) -> ReferenceAgreement:
        """Return f of a set with the means of each half of the reference prompts.

        It is measured on the first pairs, once for each set.
        """
        if node_set not in self._agreements:
            self._agreements[node_set] = reference_agreement(
                self.engine, node_set, self.universe, thresholds.FIRST_PAIRS
            )
        return self._agreements[node_set]

    @property
    def f_by_ablation(self) -> dict[EvidenceAblation, Faithfulness]:
        """f under each ablation that enters a verdict."""
        return {ablation: self.f(ablation) for ablation in EVIDENCE_ABLATIONS}

    @property
    def measured_f_by_ablation(self) -> dict[EvidenceAblation, Faithfulness]:
        """f under each ablation that has been asked for so far."""
        return dict(self._f_by_ablation)

    def measure_circuit(self, circuit: NodeSet) -> dict[EvidenceAblation, AblationEvidence]:
        """Measure f(C) and f(U∖C) under each ablation that enters a verdict."""
        evidence = {
            ablation: self.f(ablation).measure_circuit(circuit) for ablation in EVIDENCE_ABLATIONS
        }
        if self.engine.rules > 1:
            reference = describe_reference(self.engine, "mean").model_copy(
                update={"agreement": self.reference_agreement(circuit).difference}
            )
            evidence["mean"] = evidence["mean"].model_copy(update={"reference": reference})
        return evidence


def settle_reference(
    evaluators: Sequence[SplitEvaluator], node_set: NodeSet
) -> tuple[ReferenceAgreement, ...]:
    """Draw more reference prompts until the halves agree on each split, or no more can be drawn.

    Call it with the circuit that is to be judged, before it is judged. If prompts are added, the
    evaluators forget what they measured under mean ablation.

    Args:
        evaluators: the splits, which share one `ReferenceMeans` (`SplitEvaluator.of_task`).
        node_set: the nodes of the circuit for which f is compared.

    Returns:
        The last comparison on each split. If the halves still differ by more than
        `thresholds.MAX_REFERENCE_DISAGREEMENT`, conditions under mean ablation are undecided.

    Raises:
        ValueError: if the evaluators do not share their means.
        BudgetError: if a meter's budget does not suffice.
    """
    reference = evaluators[0].engine.reference
    if any(evaluator.engine.reference is not reference for evaluator in evaluators):
        raise ValueError("the evaluators have different reference means; give them a shared one")
    while True:
        measured = tuple(evaluator.reference_agreement(node_set) for evaluator in evaluators)
        limit = thresholds.MAX_REFERENCE_DISAGREEMENT
        if all(agreement.is_within(limit) for agreement in measured) or not reference.extend():
            return measured
        for evaluator in evaluators:
            evaluator.forget_means()
