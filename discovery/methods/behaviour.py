"""Does the model do the task at all? Nothing can be localised that is not there.

Three gates (INTERFACES, verdict `no_behaviour`), each on a split, always by a logit or probability difference:
the accuracy's one-sided 95% Clopper–Pearson lower bound is above max(0.5, the accuracy of the best constant answer);
the lower bound of mean(m(clean) − m(corrupted)) is above 0; and that mean is at least a quarter of mean m(clean), so that the
corruption removes the behaviour.
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
from discovery.engine.cost import MeasurementCost
from discovery.methods.statistics import Interval, Resamples, interval_of_mean
from discovery.metrics import is_right, is_top
from discovery.progress import ProgressCallback
from discovery.sites import MetricName
from discovery.tasks.task import Task

CHANCE_ACCURACY = 0.5
MIN_REMOVED_SHARE = 0.25  # of mean m(clean)


@dataclass(frozen=True)
class BehaviourCheck:
    """What the model does on a task's pairs.

    Attributes:
        accuracy: share of clean prompts on which the answer beats the wrong answer; accuracy_low its one-sided 95% lower bound.
        constant: accuracy of the best constant answer. top1: share on which the single most likely token is an answer.
        gap: m(clean) − m(corrupted).
        reasons: each gate that does not hold, with its numbers; empty where there is a behaviour.
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
    task: Task,
    *,
    metric: MetricName | None = None,
    memory: int | None = None,
    progress: ProgressCallback | None = None,
    engine: Engine | None = None,
) -> BehaviourCheck:
    """Measure whether a model does a task, on all pairs of the task given.

    Raises:
        MeasurementError: for an unknown metric.
    """
    began = time.monotonic()
    asked = metric or task.metric
    used: MetricName = "logit_difference" if asked == "kl_divergence" else asked
    if engine is None:
        engine = Engine(model, task, metric=used, memory=memory, meter=Meter(progress=progress))
    elif engine.metric != used:
        engine = Engine(
            model, task, metric=used, memory=memory or engine.memory, meter=engine.meter
        )  # counted with the rest
    before = engine.meter.spent
    clean, corrupted, right, top = _measure(engine)
    n, hits = len(right), int(right.sum())
    low = float(beta.ppf(0.05, hits, n - hits + 1)) if hits else 0.0
    gap = interval_of_mean((clean - corrupted).double(), Resamples.of(task))
    constant = best_constant_accuracy(task)
    mean_clean = float(clean.double().mean())
    reasons = []
    if not low > max(CHANCE_ACCURACY, constant):
        rival = (
            f"the best constant answer's {constant:.2f}"
            if constant > CHANCE_ACCURACY
            else f"chance, {CHANCE_ACCURACY}"
        )
        reasons.append(
            f"accuracy {hits / n:.2f} on {n} pairs (lower bound {low:.2f}) is not above {rival}"
        )
    if not gap.low > 0:
        reasons.append(
            f"{used} is not reliably larger on clean than on corrupted prompts (gap {gap.mean:.3g}, lower bound {gap.low:.3g})"
        )
    elif not gap.mean >= MIN_REMOVED_SHARE * mean_clean:
        reasons.append(
            f"the corruption does not remove the behaviour (gap {gap.mean:.3g}, clean {mean_clean:.3g})"
        )
    return BehaviourCheck(
        n,
        used,
        mean_clean,
        float(corrupted.double().mean()),
        gap,
        hits / n,
        low,
        constant,
        int(top.sum()) / n,
        tuple(reasons),
        MeasurementCost(engine.meter.spent - before, time.monotonic() - began),
        right,
    )


def _measure(
    engine: Engine,
) -> tuple[
    Float[Tensor, "pair"], Float[Tensor, "pair"], Bool[Tensor, "pair"], Bool[Tensor, "pair"]
]:
    """m(clean), m(corrupted), whether the answer beats the wrong one, and whether it is the most likely token."""
    parts: list[tuple[Tensor, ...]] = []
    for _, block in engine.blocks():
        logits, prompts = block.logits("clean"), block.prompts
        right = is_right(logits, prompts.answer, prompts.wrong)
        parts.append(
            (
                block.baseline("clean"),
                block.baseline("corrupted"),
                right,
                is_top(logits, prompts.answer),
            )
        )
    clean, corrupted, rights, top = (torch.cat(part) for part in zip(*parts, strict=True))
    return clean, corrupted, rights, top


def best_constant_accuracy(task: Task) -> float:
    """The share of pairs that the most frequent answer serves (a set of tokens is one answer)."""
    return max(Counter(tuple(sorted(pair.answer)) for pair in task.pairs).values()) / len(
        task.pairs
    )
