"""`evaluate_circuit` from end to end, and the small functions beside it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.known_circuits.truth import load_truth
from benchmarks.random_models.tiny_models import as_task
from discovery import evaluate_circuit
from discovery.errors import BudgetError, MeasurementError, SiteError
from discovery.evaluation import (
    circuit_key,
    conclude_without_circuit,
    heldout_key,
)
from discovery.evaluation.evaluate import NOT_FINAL_REASON
from discovery.evaluation.verdict.reasons import decide_band
from tests.oracles.evaluation.faithfulness import FaithfulnessOracle, nodes

TRUTH = load_truth("induction").nodes


@pytest.fixture(scope="module")
def wide(load_case: Callable[[str], Any]) -> tuple[Any, Any]:
    """Induction with at least 48 held-out pairs."""
    from benchmarks.known_circuits.hand_built import build_known_circuit
    from discovery import load_task

    case = load_case("induction")
    return case.model, load_task(
        [pair.record() for pair in build_known_circuit("induction").pairs], case.model, pairs=120
    )


@pytest.fixture(scope="module")
def final(wide: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return evaluate_circuit(*wide, TRUTH, final=True, runs_dir=tmp_path_factory.mktemp("runs"))


def test_the_truth_on_held_out_pairs(
    wide: tuple[Any, Any], final: Any, load_case: Callable[[str], Any]
) -> None:
    """All holds but stability, which takes a search: partial, and `reasons` says little else.

    The means are over fewer than 50 prompts.
    """
    _, task = wide
    assert final.nodes == TRUTH
    assert final.verdict == "partial"
    not_run, relative = final.reasons
    assert not_run == "not run: (f) stable"
    assert relative.startswith("f under mean ablation is relative to these reference prompts")
    assert final.evaluation.heldout_looks == 1
    known_circuit = load_case("induction").known_circuit
    for name, pairs in (("discovery", task.discovery.pairs), ("heldout", task.heldout.pairs)):
        split = getattr(final.evaluation, name)
        oracle = FaithfulnessOracle(
            known_circuit.config,
            known_circuit.state,
            pairs,
            "mean",
            task.reference_source.draw(0),
        )
        empty, full = oracle.metrics([(), oracle.universe])
        assert (split.n, split.accuracy) == (len(pairs), float((full > 0).double().mean()))
        assert split.metric_clean == pytest.approx(float(full.mean()), abs=1e-4)
        assert split.ablations.mean.metric_empty == pytest.approx(float(empty.mean()), abs=1e-4)
        assert split.ablations.mean.faithfulness.value == pytest.approx(oracle.f1(TRUTH), abs=1e-4)
        assert split.ablations.mean.knockout.value == pytest.approx(
            oracle.f1(set(oracle.universe) - set(TRUTH)), abs=1e-4
        )
    assert final.evaluation.discovery.ablations.mean.minimality is None, (
        "(c) to (e) are judged on held-out pairs"
    )
    assert len(final.evaluation.heldout.ablations.mean.minimality) == 2


def test_held_out_pairs_are_looked_at_only_when_final(
    wide: tuple[Any, Any], final: Any, tmp_path: Path
) -> None:
    """Without it, discovery pairs: at most partial, and nothing is counted."""
    evaluation = evaluate_circuit(*wide, TRUTH, runs_dir=tmp_path)
    assert evaluation.verdict == "partial"
    assert evaluation.reasons[:2] == (NOT_FINAL_REASON, final.reasons[0])
    assert len(evaluation.reasons) == 3
    assert evaluation.evaluation.heldout is None
    assert evaluation.evaluation.heldout_looks is None
    assert not list(tmp_path.iterdir())
    assert (
        evaluation.evaluation.discovery.ablations.mean.faithfulness
        == final.evaluation.discovery.ablations.mean.faithfulness
    )
    assert len(evaluation.evaluation.discovery.ablations.mean.minimality) == 2


def test_another_circuit_is_another_look_and_changes_no_verdict(
    wide: tuple[Any, Any], tmp_path: Path
) -> None:
    first = evaluate_circuit(*wide, TRUTH, final=True, runs_dir=tmp_path)
    again = evaluate_circuit(*wide, TRUTH[::-1], final=True, runs_dir=tmp_path)
    assert first.evaluation.heldout_looks == again.evaluation.heldout_looks == 1
    assert again.reasons == first.reasons
    third = evaluate_circuit(*wide, ["a1.h3"], final=True, runs_dir=tmp_path)
    assert third.evaluation.heldout_looks == 2
    assert "looked at with 2 circuits" in third.reasons[-1]
    assert "--seed" in third.reasons[-1]
    assert third.verdict == "rejected"
    assert (
        evaluate_circuit(
            *wide, ["a1.h3"], final=True, runs_dir=tmp_path / "elsewhere"
        ).evaluation.heldout_looks
        == 1
    )


def test_few_discovery_pairs_are_not_called_held_out(load_case: Callable[[str], Any]) -> None:
    case = load_case("induction")
    evaluation = evaluate_circuit(case.model, case.task, TRUTH)
    assert evaluation.evaluation.discovery.n == len(case.task.discovery) < 48
    assert evaluation.verdict == "partial"
    assert not any("held-out pairs;" in reason for reason in evaluation.reasons)
    few = evaluate_circuit(case.model, case.task, TRUTH, final=True)
    assert few.verdict == "inconclusive"
    assert few.reasons[0] == f"{len(case.task.heldout)} held-out pairs; 48 are needed"


def test_no_behaviour_is_named_once_per_split_that_was_looked_at(
    load_case: Callable[[str], Any],
) -> None:
    case = load_case("induction")
    turned = replace(
        case.task,
        pairs=tuple(
            replace(pair, answer=pair.wrong, wrong=pair.answer) for pair in case.task.pairs
        ),
    )
    for final, expected in ((False, {"discovery"}), (True, {"discovery", "heldout"})):
        evaluation = evaluate_circuit(case.model, turned, TRUTH, final=final)
        assert evaluation.verdict == "no_behaviour"
        assert {reason.split(":")[0] for reason in evaluation.reasons} == expected


@pytest.mark.parametrize("final", [False, True])
def test_two_pairs_are_enough_to_be_measured(final: bool, load_case: Callable[[str], Any]) -> None:
    """One in each split: every number is there, with intervals of no width and no warning."""
    case = load_case("induction")
    pairs = (case.task.discovery.pairs[0], case.task.heldout.pairs[0])
    task = replace(as_task(pairs), splits=("discovery", "heldout"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluation = evaluate_circuit(case.model, task, TRUTH, final=final)
    assert evaluation.verdict == "no_behaviour"
    split = evaluation.evaluation.heldout if final else evaluation.evaluation.discovery
    for ablation in (split.ablations.resample, split.ablations.mean):
        assert ablation.faithfulness.low == ablation.faithfulness.high
        assert [row.p for row in ablation.minimality] == [1.0, 1.0]
        if decide_band(ablation.faithfulness, (0.8, 1.2)) == "fails":
            assert ablation.random_controls is None, (
                "(e) compares only a circuit that is sufficient"
            )
        else:
            assert ablation.random_controls.layer.n == 15


def test_with_the_mlps_kept(load_case: Callable[[str], Any]) -> None:
    """With universe="heads" f is 0 for the MLPs alone, so they are in no control and no circuit."""
    case = load_case("or_mlp")
    heads = [name for name in load_truth("or_mlp").nodes if name.startswith("a")]
    evaluation = evaluate_circuit(case.model, case.task, heads, universe="heads")
    assert evaluation.evaluation.universe == "heads"
    oracle = case.oracle("resample")
    mlps = {"m0", "m1"}
    empty, full, kept = oracle.f(mlps, oracle.universe, {*heads, *mlps})
    evidence = evaluation.evaluation.discovery.ablations.resample
    assert evidence.faithfulness.value == pytest.approx((kept - empty) / (full - empty), abs=1e-4)
    assert evidence.completeness.checked.outside == 8 - len(heads)
    with pytest.raises(MeasurementError, match="not in the universe 'heads'"):
        evaluate_circuit(case.model, case.task, [*heads, "m1"], universe="heads")


def test_by_kl_divergence_the_truth_still_holds(load_case: Callable[[str], Any]) -> None:
    case = load_case("induction")
    evaluation = evaluate_circuit(case.model, case.task, TRUTH, metric="kl_divergence")
    evidence = evaluation.evaluation.discovery.ablations.resample
    assert evidence.metric_full == pytest.approx(0, abs=1e-5)
    assert evidence.metric_empty > 0
    assert evidence.faithfulness.value > 0.8
    assert evidence.random_controls.layer.as_good == 0
    assert evaluation.verdict != "no_behaviour"


def test_bad_input(load_case: Callable[[str], Any]) -> None:
    case = load_case("induction")
    with pytest.raises(SiteError):
        evaluate_circuit(case.model, case.task, ["a7.h0"])
    with pytest.raises(SiteError):
        evaluate_circuit(case.model, case.task, ["m0"])
    with pytest.raises(MeasurementError, match="leaves a split empty"):
        evaluate_circuit(case.model, as_task(case.task.pairs), TRUTH, final=True)
    with pytest.raises(BudgetError):
        evaluate_circuit(case.model, case.task, TRUTH, budget=10.0)


def test_a_budget_that_ends_in_the_conditions(wide: tuple[Any, Any], tmp_path: Path) -> None:
    whole = evaluate_circuit(*wide, TRUTH, final=True, runs_dir=tmp_path)
    evaluation = evaluate_circuit(
        *wide, TRUTH, final=True, runs_dir=tmp_path, budget=0.6 * whole.cost.forward_equivalents
    )
    assert evaluation.verdict == "inconclusive"
    assert evaluation.reasons[0].startswith("the budget ended before (")
    assert evaluation.cost.forward_equivalents <= 0.6 * whole.cost.forward_equivalents
    assert evaluation.evaluation.discovery.ablations == whole.evaluation.discovery.ablations


def test_keys(load_case: Callable[[str], Any]) -> None:
    case = load_case("induction")
    assert (
        circuit_key(nodes("m0", "a1.h0", "a0.h3"))
        == circuit_key(nodes("a0.h3", "m0", "a1.h0"))
        == "a0.h3 m0 a1.h0"
    )
    other = load_case("or_mlp")
    assert heldout_key(case.model, case.task) != heldout_key(other.model, case.task)
    assert heldout_key(case.model, case.task) != heldout_key(case.model, case.task.discovery)


def test_a_run_that_ended_before_its_circuit() -> None:
    evaluation, verdict, reasons = conclude_without_circuit(
        {},
        gates={"heldout": ["accuracy 0.5"]},
        curve=(),
        size=0,
        n_heldout=60,
        cut_short=None,
        universe="heads",
    )
    assert verdict == "no_behaviour"
    assert reasons == ("heldout: accuracy 0.5",)
    assert evaluation.universe == "heads"
    assert evaluation.heldout is None
    _, verdict, _ = conclude_without_circuit(
        {},
        gates={"heldout": []},
        curve=(),
        size=0,
        n_heldout=60,
        cut_short="heads",
        universe="all",
    )
    assert verdict == "inconclusive"
