"""Verifying a run: its numbers hold when they are measured again, and a changed number is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from discovery import discover
from discovery.agent import DiscoveryResult, verify_run
from discovery.backends.base import Backend
from discovery.errors import BudgetError, StoreError
from discovery.evaluation import condition_measurements
from discovery.evaluation.verdict import find_contradictions
from discovery.store import open_run
from discovery.tasks import Task


def test_verify_measures_the_record_again(finished_run: DiscoveryResult) -> None:
    again = verify_run(finished_run.run_id, runs_dir=finished_run.path.parent)
    assert again.holds
    assert again.checked > 50
    assert find_contradictions(finished_run.circuit) == ()
    circuit = open_run(finished_run.path.parent, finished_run.run_id).load_circuit()
    assert circuit.evaluation.heldout_looks == 1


def test_verify_names_a_number_that_was_changed(finished_run: DiscoveryResult) -> None:
    path = finished_run.path / "circuit.json"
    honest = path.read_text()
    heldout: Any = finished_run.circuit.evaluation.heldout
    value = heldout.ablations.resample.faithfulness.value
    try:
        path.write_text(honest.replace(repr(value), repr(value + 0.05)))
        assert path.read_text() != honest
        tampered = verify_run(finished_run.run_id, runs_dir=finished_run.path.parent)
        assert not tampered.holds
        assert any("faithfulness" in difference for difference in tampered.differences)
    finally:
        path.write_text(honest)


def test_verify_names_a_test_that_was_changed(finished_run: DiscoveryResult) -> None:
    """The tests beside the conditions decide nothing, but they are claims all the same."""
    path = finished_run.path / "circuit.json"
    honest = path.read_text()
    hypotheses: Any = finished_run.circuit.evaluation.tests["hypotheses"]
    value = hypotheses["mean"]["equivalence"]["share_above"]
    try:
        path.write_text(
            honest.replace(f'"share_above": {value!r}', f'"share_above": {value / 2 + 0.1!r}')
        )
        assert path.read_text() != honest
        tampered = verify_run(finished_run.run_id, runs_dir=finished_run.path.parent)
        assert any(
            "tests.hypotheses" in difference and "share_above" in difference
            for difference in tampered.differences
        )
    finally:
        path.write_text(honest)


def test_verify_holds_for_a_record_that_the_budget_cut(
    model_and_task: tuple[Backend, Task], finished_run: DiscoveryResult, tmp_path: Path
) -> None:
    """If the budget ended in the conditions or later, what was measured is measured again.

    If it ended before the conditions, there is nothing to verify.
    """
    spent = {
        event["stage"]: event["forward_equivalents"]
        for event in open_run(finished_run.path.parent, finished_run.run_id).events()
        if "state" in event
    }
    for budget in (spent["validate"] + 1, spent["stability"] + 1):
        run = discover(*model_and_task, runs_dir=tmp_path, budget=budget)
        assert any("budget ended" in reason for reason in run.circuit.reasons)
        again = verify_run(run.run_id, runs_dir=tmp_path)
        assert again.holds, again.differences
    early = discover(*model_and_task, runs_dir=tmp_path, budget=spent["heads"])
    with pytest.raises(StoreError, match="before its circuit was evaluated"):
        verify_run(early.run_id, runs_dir=tmp_path)


@pytest.mark.parametrize(
    ("condition", "measure"), [("(c)", "measure_completeness"), ("(e)", "measure_random_controls")]
)
def test_verify_holds_for_a_record_whose_budget_ended_within_the_conditions(
    condition: str,
    measure: str,
    model_and_task: tuple[Backend, Task],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends under the second ablation: what was measured by then is measured again."""
    original = getattr(condition_measurements, measure)
    calls = 0

    def end_at_the_second_call(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise BudgetError("the budget is spent.", "Raise it.")
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(condition_measurements, measure, end_at_the_second_call)
        run = discover(*model_and_task, runs_dir=tmp_path)
    assert run.circuit.verdict == "inconclusive"
    assert f"the budget ended before {condition}" in run.circuit.reasons
    assert find_contradictions(run.circuit) == ()
    again = verify_run(run.run_id, runs_dir=tmp_path)
    assert again.holds, again.differences
    path = run.path / "circuit.json"
    heldout: Any = run.circuit.evaluation.heldout
    gap = heldout.ablations.resample.knockout.value
    path.write_text(path.read_text().replace(repr(gap), repr(gap + 0.05)))
    assert not verify_run(run.run_id, runs_dir=tmp_path).holds
