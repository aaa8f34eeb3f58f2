"""The three gates of a behaviour, each held and each failed, with its numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import binom

from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery.engine import Block, Engine, Meter
from discovery.methods.behaviour import best_constant_accuracy, check_task
from discovery.sites import MetricName
from discovery.tasks.task import EncodedPair, Task
from tests.oracles.patching.activation_patching import METRICS, metric_of


def task_with_accuracy(model: Any, count: int, right: int, seed: int = 0) -> Task:
    """Make pairs; the answer is the likeliest token on `right` of them, else the unlikeliest."""
    pairs = []
    for number, pair in enumerate(random_pairs([5] * count, seed)):
        logits = _logits(model, pair.clean)
        order = logits.argsort(descending=True).tolist()
        answer, wrong = (order[0], order[-1]) if number < right else (order[-1], order[0])
        pairs.append(
            EncodedPair(
                clean=pair.clean, corrupted=pair.corrupted, answer=(answer,), wrong=(wrong,)
            )
        )
    return as_task(pairs)


def _logits(model: Any, tokens: tuple[int, ...]) -> torch.Tensor:
    from discovery.backends.base import Batch

    logits: torch.Tensor = model.run(
        Batch(torch.tensor([tokens]), torch.tensor([len(tokens) - 1]))
    ).logits[0]
    return logits


@pytest.mark.parametrize("metric", METRICS)
def test_numbers_are_those_of_each_prompt_alone(tiny_models, metric: MetricName):
    model = tiny_models.load("native", dtype="float64")
    task = as_task(random_pairs([6, 4, 7, 5, 5], seed=1, sets=2))
    got = check_task(model, task, metric=metric)
    used: MetricName = (
        "logit_difference" if metric == "kl_divergence" else metric
    )  # a divergence has no right answer
    assert got.metric == used
    rows = [
        (pair, _logits(model, pair.clean), _logits(model, pair.corrupted)) for pair in task.pairs
    ]
    clean = [metric_of(used, up, pair, up) for pair, up, _ in rows]
    corrupted = [metric_of(used, down, pair, up) for pair, up, down in rows]
    right = [metric_of("logit_difference", up, pair, up) > 0 for pair, up, _ in rows]
    assert got.n == 5
    assert got.metric_clean == pytest.approx(sum(clean) / 5)
    assert got.metric_corrupted == pytest.approx(sum(corrupted) / 5)
    assert got.gap.mean == pytest.approx((sum(clean) - sum(corrupted)) / 5)
    assert got.gap.low <= got.gap.mean <= got.gap.high
    assert got.right.tolist() == right
    assert got.accuracy == pytest.approx(sum(right) / 5)
    assert got.top1 == pytest.approx(
        sum(int(up.argmax()) in pair.answer for pair, up, _ in rows) / 5
    )
    assert got.cost.forward_equivalents == pytest.approx(
        sum(7 / len(pair.clean) for pair in task.pairs) * 2, rel=0.2
    )  # padding counts


def test_the_tasks_metric_is_the_default(tiny_models):
    pairs = random_pairs([5, 5])
    assert (
        check_task(tiny_models.load("native"), as_task(pairs, "probability_difference")).metric
        == "probability_difference"
    )
    assert (
        check_task(tiny_models.load("native"), as_task(pairs, "kl_divergence")).metric
        == "logit_difference"
    )


@pytest.mark.parametrize(("count", "right"), [(12, 12), (12, 11), (30, 21), (20, 10), (6, 0)])
def test_the_accuracys_lower_bound_is_the_binomials(tiny_models, count, right):
    """The p at which so many hits or more have probability 0.05 (Clopper and Pearson 1934)."""
    got = check_task(
        tiny_models.load("native"), task_with_accuracy(tiny_models.load("native"), count, right)
    )
    assert got.accuracy == pytest.approx(right / count)
    if right:
        assert binom.sf(right - 1, count, got.accuracy_low) == pytest.approx(0.05)
    else:
        assert got.accuracy_low == 0
    assert got.top1 == got.accuracy  # by construction


def fix_baselines(
    monkeypatch: pytest.MonkeyPatch, clean: list[float], corrupted: list[float]
) -> None:
    """Give a measurement these metrics."""
    sides = {"clean": torch.tensor(clean), "corrupted": torch.tensor(corrupted)}
    monkeypatch.setattr(Block, "baseline", lambda self, side: sides[side])


def test_a_behaviour_passes_every_gate(tiny_models, monkeypatch):
    model = tiny_models.load("native")
    task = task_with_accuracy(model, 20, 20)
    fix_baselines(monkeypatch, [4.0, 5.0] * 10, [1.0, 0.0] * 10)
    got = check_task(model, task)
    assert got.reasons == ()
    assert got.is_present


def test_chance_is_no_behaviour(tiny_models, monkeypatch):
    model = tiny_models.load("native")
    fix_baselines(monkeypatch, [4.0] * 20, [0.0] * 20)
    got = check_task(model, task_with_accuracy(model, 20, 13))
    assert not got.is_present
    (reason,) = got.reasons
    lower_bound = f"{got.accuracy_low:.2f}"
    assert reason == (
        f"accuracy 0.65 on 20 pairs (lower bound {lower_bound}) is not above chance, 0.5"
    )


def test_a_constant_answer_is_no_behaviour(tiny_models, monkeypatch):
    """19 of 20 right, and one answer serves them all."""
    model = tiny_models.load("native")
    pairs = [
        EncodedPair(
            clean=(1, 2, n), corrupted=(3, 2, n), answer=(7, 8) if n % 2 else (8, 7), wrong=(9,)
        )
        for n in range(19)
    ] + [EncodedPair(clean=(1, 2, 20), corrupted=(3, 2, 20), answer=(4,), wrong=(9,))]
    task = as_task(pairs)
    assert best_constant_accuracy(task) == 0.95  # a set is one answer, in whatever order
    fix_baselines(monkeypatch, [4.0] * 20, [0.0] * 20)
    got = check_task(model, task)
    assert got.best_constant == 0.95
    assert any("is not above the best constant answer's 0.95" in reason for reason in got.reasons)


def test_a_gap_that_may_be_chance_is_no_behaviour(tiny_models, monkeypatch):
    model = tiny_models.load("native")
    task = task_with_accuracy(model, 20, 20)
    fix_baselines(monkeypatch, [3.0] * 20, [2.0, 4.2] * 10)
    got = check_task(model, task)
    assert got.gap.low < 0 < got.gap.high
    (reason,) = got.reasons
    assert "is not reliably larger on clean than on corrupted prompts" in reason


def test_a_corruption_that_leaves_the_behaviour_is_none(tiny_models, monkeypatch):
    model = tiny_models.load("native")
    task = task_with_accuracy(model, 20, 20)
    for corrupted, removed in ((3.01, False), (2.99, True)):
        fix_baselines(monkeypatch, [4.0] * 20, [corrupted] * 20)
        got = check_task(model, task)
        assert got.is_present == removed
        assert (
            removed
            or "the corruption does not remove the behaviour (gap 0.99, clean 4)" in got.reasons
        )


def test_blocks_of_pairs_give_the_same_answer(tiny_models):
    model = tiny_models.load("native", dtype="float64")
    task = as_task(random_pairs([6, 4, 7, 5, 5], seed=2))
    whole = check_task(model, task)
    for memory in range(500, 10**6, 500):
        try:
            engine = Engine(model, task, memory=memory)
        except Exception:  # noqa: BLE001  (too small for one pair)
            continue
        break
    assert len(list(engine.blocks())) > 1
    little = check_task(model, task, engine=engine)
    assert (little.accuracy, little.top1) == (whole.accuracy, whole.top1)
    torch.testing.assert_close(little.right, whole.right)
    assert little.gap.mean == pytest.approx(whole.gap.mean)


def test_a_prepared_engine_pays_whatever_its_metric(tiny_models):
    model = tiny_models.load("native")
    task = as_task(random_pairs([5] * 4))
    for metric in METRICS:
        engine = Engine(model, task, metric=metric, meter=Meter(limit=100.0))
        got = check_task(model, task, engine=engine)
        assert got.metric != "kl_divergence"
        assert engine.meter.spent == pytest.approx(2 * 4)
        assert got.cost.forward_equivalents == pytest.approx(2 * 4)


def test_the_engines_metric_is_not_exchanged_for_the_tasks(tiny_models):
    model = tiny_models.load("native")
    task = as_task(random_pairs([5] * 4), "probability_difference")
    engine = Engine(model, task)
    assert check_task(model, task, engine=engine).metric == "probability_difference"
    assert (
        check_task(model, task, metric="logit_difference", engine=engine).metric
        == "logit_difference"
    )
