"""Does the model do the task at all? A behaviour that is not there cannot be localised.

Three gates decide this on each split, always by a logit or probability difference (see
docs/definitions.md, "Verdict", the row `no_behaviour`):

- the one-sided 95% Clopper–Pearson lower bound of the accuracy is above max(0.5, the accuracy of
  the best constant answer);
- the lower bound of mean(m(clean) − m(corrupted)) is above 0;
- that mean is at least a quarter of mean m(clean), so that the corruption removes the behaviour.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from scipy.stats import beta
from torch import Tensor

from discovery.backends.base import Backend
from discovery.engine import Engine, Meter
from discovery.engine.cost import CostTimer, MeasurementCost
from discovery.methods.statistics import Interval, Resamples, interval_of_mean
from discovery.methods.subject import TaskLike, resolve_task
from discovery.metrics import is_right, is_top
from discovery.progress import ProgressCallback
from discovery.sites import MetricName
from discovery.tasks.task import Task

CHANCE_ACCURACY = 0.5
MIN_REMOVED_SHARE = 0.25  # of mean m(clean)
ACCURACY_ALPHA = 0.05  # of the accuracy's lower bound


@dataclass(frozen=True, kw_only=True)
class BehaviourCheck:
    """What the model does on a task's pairs.

    Attributes:
        n: the number of pairs.
        metric: what was measured: a logit or probability difference.
        metric_clean: the mean over the clean prompts.
        metric_corrupted: the mean over the corrupted prompts.
        gap: m(clean) − m(corrupted), with its 95% interval.
        accuracy: the share of clean prompts on which the answer beats the wrong answer.
        accuracy_low: the one-sided 95% lower bound of the accuracy.
        best_constant: the accuracy of the best constant answer.
        top1: the share of clean prompts whose single most likely token is an answer.
        reasons: each gate that does not hold, with its numbers; empty if there is a behaviour.
        cost: the work and the time that it took.
        right: on which clean prompts the answer beats the wrong answer, [pair].
    """

    n: int
    metric: MetricName
    metric_clean: float
    metric_corrupted: float
    gap: Interval
    accuracy: float
    accuracy_low: float
    best_constant: float
    top1: float
    reasons: tuple[str, ...]
    cost: MeasurementCost
    right: Bool[Tensor, "pair"]

    @property
    def is_present(self) -> bool:
        """Whether every gate holds."""
        return not self.reasons


def check_task(
    model: Backend,
    task: TaskLike,
    *,
    metric: MetricName | None = None,
    memory: int | None = None,
    progress: ProgressCallback | None = None,
    engine: Engine | None = None,
) -> BehaviourCheck:
    """Measure whether a model does a task, on all pairs of the task.

    Args:
        model: the model.
        task: a task, all of whose pairs are measured, or what `load_task` accepts: a name, the path
            of a task file, or pairs.
        metric: what is measured; the task's own by default. A logit difference replaces
            kl_divergence, which cannot say whether there is a behaviour.
        memory: bytes that caches and batches may take; 60% of the free memory by default.
        progress: a function that hears how far the measurement is.
        engine: a prepared engine of the same model and task, whose caches are reused.

    Raises:
        MeasurementError: if the metric is unknown.
        BudgetError: if the engine's meter has a budget that does not suffice.
    """
    began = time.monotonic()
    loaded = resolve_task(task, model, seed=0, pairs=None)
    engine = _engine_of_difference(engine, model, loaded, metric, memory, progress)
    timer = CostTimer(engine.meter, began)
    clean, corrupted, right, top = _measure(engine)
    n = len(right)
    n_right = int(right.sum())
    accuracy_low = float(beta.ppf(ACCURACY_ALPHA, n_right, n - n_right + 1)) if n_right else 0.0
    gap = interval_of_mean((clean - corrupted).double(), Resamples.of(loaded))
    best_constant = best_constant_accuracy(loaded)
    metric_clean = float(clean.double().mean())
    reasons = [
        *_accuracy_reasons(n_right / n, accuracy_low, best_constant, n),
        *_gap_reasons(engine.metric, gap, metric_clean),
    ]
    return BehaviourCheck(
        n=n,
        metric=engine.metric,
        metric_clean=metric_clean,
        metric_corrupted=float(corrupted.double().mean()),
        gap=gap,
        accuracy=n_right / n,
        accuracy_low=accuracy_low,
        best_constant=best_constant,
        top1=int(top.sum()) / n,
        reasons=tuple(reasons),
        cost=timer.cost,
        right=right,
    )


def best_constant_accuracy(task: Task) -> float:
    """Return the share of pairs that the most frequent answer serves.

    A set of answer tokens is one answer.
    """
    counts = Counter(tuple(sorted(pair.answer)) for pair in task.pairs)
    return max(counts.values()) / len(task.pairs)


def _engine_of_difference(
    engine: Engine | None,
    model: Backend,
    task: Task,
    metric: MetricName | None,
    memory: int | None,
    progress: ProgressCallback | None,
) -> Engine:
    """Return an engine that measures a logit or probability difference.

    The given engine serves if it measures the right metric; a new one shares its meter if not.
    """
    metric = metric or task.metric
    if metric == "kl_divergence":
        metric = "logit_difference"
    if engine is None:
        return Engine(model, task, metric=metric, memory=memory, meter=Meter(progress=progress))
    if engine.metric == metric:
        return engine
    return Engine(model, task, metric=metric, memory=memory or engine.memory, meter=engine.meter)


def _measure(
    engine: Engine,
) -> tuple[
    Float[Tensor, "pair"], Float[Tensor, "pair"], Bool[Tensor, "pair"], Bool[Tensor, "pair"]
]:
    """Measure every pair.

    Returns:
        m(clean), m(corrupted), whether the answer beats the wrong answer, and whether the most
        likely token is an answer.
    """
    parts: list[tuple[Tensor, ...]] = []
    for _, block in engine.blocks():
        logits = block.logits("clean")
        prompts = block.prompts
        right = is_right(logits, prompts.answer, prompts.wrong)
        top = is_top(logits, prompts.answer)
        parts.append((block.baseline("clean"), block.baseline("corrupted"), right, top))
    clean, corrupted, right, top = (torch.cat(part) for part in zip(*parts, strict=True))
    return clean, corrupted, right, top


def _accuracy_reasons(
    accuracy: float, accuracy_low: float, best_constant: float, n: int
) -> tuple[str, ...]:
    """Return why the accuracy is not high enough, if it is not."""
    if accuracy_low > max(CHANCE_ACCURACY, best_constant):
        return ()
    rival = f"chance, {CHANCE_ACCURACY}"
    if best_constant > CHANCE_ACCURACY:
        rival = f"the best constant answer's {best_constant:.2f}"
    return (
        f"accuracy {accuracy:.2f} on {n} pairs (lower bound {accuracy_low:.2f}) is not above "
        f"{rival}",
    )


def _gap_reasons(metric: MetricName, gap: Interval, metric_clean: float) -> tuple[str, ...]:
    """Return why m(clean) − m(corrupted) is not large enough, if it is not."""
    if not gap.low > 0:
        return (
            f"{metric} is not reliably larger on clean than on corrupted prompts "
            f"(gap {gap.mean:.3g}, lower bound {gap.low:.3g})",
        )
    if not gap.mean >= MIN_REMOVED_SHARE * metric_clean:
        return (
            f"the corruption does not remove the behaviour "
            f"(gap {gap.mean:.3g}, clean {metric_clean:.3g})",
        )
    return ()
