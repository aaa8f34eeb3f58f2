"""Whether halves of the reference prompts agree, against an independent forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery.engine import Engine, Meter, new_reference
from discovery.evaluation import (
    SplitEvaluator,
    settle_reference,
    thresholds,
)
from discovery.methods.reference_agreement import ReferenceAgreement, reference_agreement
from discovery.sites import Node
from discovery.tasks.reference import HALVES, divide_into_halves
from tests.discovery.engine.test_reference_means import GrowingReference
from tests.oracles.evaluation.faithfulness import FaithfulnessOracle


def test_f_with_the_means_of_each_half(load_case: Callable[[str], Any]) -> None:
    case = load_case("induction")
    engine = case.evaluator.engine
    prompts = engine.reference.prompts
    kept = frozenset(map(Node.parse, case.oracle("mean").universe[1:6]))
    agreement = reference_agreement(engine, kept)
    spent = engine.reference.spent
    halves = divide_into_halves(prompts)
    circuit = case.known_circuit
    for half, value in zip(HALVES, agreement.halves, strict=True):
        oracle = FaithfulnessOracle(
            circuit.config,
            circuit.state,
            engine.task.pairs,
            "mean",
            prompts,
            [number for number, own in enumerate(halves) if own == half],
        )
        assert value == pytest.approx(oracle.f1(kept), abs=1e-4)
    assert agreement.difference == pytest.approx(abs(agreement.halves[0] - agreement.halves[1]))
    assert agreement.is_within(agreement.difference)
    assert not agreement.is_within(agreement.difference - 1e-9)
    assert reference_agreement(engine, kept | {min(engine.backend.info.nodes())}) != agreement
    assert engine.reference.spent == spent, "another set takes no further reference passes"


def test_a_half_under_which_f_is_undefined_agrees_with_nothing() -> None:
    undefined = ReferenceAgreement(halves=(None, 0.9), per_group=52, size=52, n_pairs=48)
    assert undefined.difference is None
    assert not undefined.is_within(10.0)


def test_halves_may_differ_by_a_twentieth() -> None:
    assert thresholds.MAX_REFERENCE_DISAGREEMENT == 0.05


def test_the_agreement_is_recorded(load_case: Callable[[str], Any]) -> None:
    """Under mean ablation, with the circuit itself, on the first pairs."""
    case = load_case("induction")
    kept = frozenset(map(Node.parse, case.oracle("mean").universe[1:6]))
    evidence = case.evaluator.measure_circuit(kept)
    expected = reference_agreement(case.evaluator.engine, kept, "all", 32)
    assert evidence["mean"].reference.agreement == pytest.approx(expected.difference)
    assert evidence["resample"].reference.agreement is None


def test_prompts_are_drawn_until_the_halves_agree(
    tiny_models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number is doubled, both splits forget their means, and the bound ends it."""
    model = tiny_models.load("native")
    task = replace(
        as_task(random_pairs([5] * 6)),
        splits=("discovery", "heldout") * 3,
        reference=GrowingReference([5]),
    )
    monkeypatch.setattr("discovery.engine.reference_means.MAX_REFERENCE_PROMPTS", 32)
    monkeypatch.setattr(thresholds, "MAX_REFERENCE_DISAGREEMENT", -1.0)
    meter = Meter()
    reference = new_reference(model, task, meter=meter)
    evaluators = [
        SplitEvaluator(Engine(model, split, meter=meter, reference=reference), "all")
        for split in (task.discovery, task.heldout)
    ]
    earlier = [evaluator.f("mean") for evaluator in evaluators]
    resample = evaluators[0].f("resample")
    agreements = settle_reference(evaluators, frozenset({Node.parse("a0.h1")}))
    assert [agreement.per_group for agreement in agreements] == [32, 32]
    assert reference.spent == 32
    for evaluator, old in zip(evaluators, earlier, strict=True):
        assert evaluator.f("mean") is not old
        assert evaluator.f("mean").empty.tolist() != old.empty.tolist()
        assert evaluator.engine.reference_plan.size == 32
    assert evaluators[0].f("resample") is resample


def test_nothing_is_drawn_if_the_halves_agree(tiny_models: Any) -> None:
    """With everything kept, f is 1 whatever the means are."""
    model = tiny_models.load("native")
    task = replace(as_task(random_pairs([5] * 6)), reference=GrowingReference([5]))
    reference = new_reference(model, task, meter=Meter())
    engine = Engine(model, task, metric="kl_divergence", reference=reference)
    evaluator = SplitEvaluator(engine, "all")
    f = evaluator.f("mean")
    (agreement,) = settle_reference([evaluator], f.everything)
    assert agreement.halves == (1.0, 1.0)
    assert agreement.difference == 0
    assert reference.per_group == 8
    assert evaluator.f("mean") is f


def test_evaluators_have_to_share_their_means(tiny_models: Any) -> None:
    model = tiny_models.load("native")
    task = as_task(random_pairs([5] * 6))
    evaluators = [SplitEvaluator(Engine(model, task), "all") for _ in range(2)]
    with pytest.raises(ValueError, match="different reference means"):
        settle_reference(evaluators, frozenset())
