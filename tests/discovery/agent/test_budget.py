"""A budget is divided before it is spent: a ranking and a circuit first, then their judgement."""

from __future__ import annotations

from typing import Any

import pytest

from discovery.agent.budget import MEND_SHARE, STABILITY_SHARE, WHOLE_STAGES, plan_budget

ESTIMATES = {
    "check": 100.0,
    "heads": 1000.0,
    "candidate": 500.0,
    "mend": 6000.0,
    "validate": 2000.0,
    "stability": 3000.0,
    "localise": 400.0,
    "components": 600.0,
    "edges": 300.0,
    "interpret": 100.0,
}
TOTAL = sum(ESTIMATES.values())


@pytest.mark.parametrize("budget", [1.0, 50, 1100, 1600, 3599, 3600, 5000, 9000, TOTAL, 3 * TOTAL])
def test_the_shares_never_exceed_the_budget_or_the_estimates(budget: float) -> None:
    plan = plan_budget(ESTIMATES, budget)
    assert sum(plan.shares.values()) <= budget + 1e-9
    assert all(0.0 <= plan.shares[name] <= ESTIMATES[name] for name in ESTIMATES)
    assert plan.shares["stability"] <= STABILITY_SHARE * budget
    for name in WHOLE_STAGES:
        assert plan.shares[name] in (0.0, ESTIMATES[name])


def test_enough_for_everything_gives_every_stage_its_estimate_and_leaves_nothing_out() -> None:
    plan = plan_budget(ESTIMATES, TOTAL)
    assert dict(plan.shares) == ESTIMATES
    assert (plan.left_out, plan.shortened, plan.shortage) == ((), (), "")


def test_a_small_budget_buys_a_ranking_and_no_descriptions() -> None:
    plan = plan_budget(ESTIMATES, 1200.0)
    assert (plan.shares["check"], plan.shares["heads"], plan.shares["candidate"]) == (
        100,
        1000,
        100,
    )
    assert not any(plan.shares[name] for name in ("mend", "validate", "stability", *WHOLE_STAGES))
    assert not plan.reaches_verdict
    assert "cannot reach a verdict: about 3,600 are needed" in plan.shortage


def test_the_evaluation_is_set_aside_before_the_search() -> None:
    plan = plan_budget(ESTIMATES, 3600.0 + 1000.0)
    assert plan.shares["validate"] == ESTIMATES["validate"]
    assert plan.shares["mend"] == pytest.approx(MEND_SHARE * 1000)
    assert plan.reaches_verdict
    assert plan.shares["stability"] == pytest.approx(300)
    assert "shortened: mend, stability" in plan.shortage
    assert "left out: localise, components, edges, interpret" in plan.shortage


def test_a_stage_may_spend_what_earlier_ones_left_but_not_what_later_ones_need() -> None:
    plan = plan_budget(ESTIMATES, TOTAL)
    after_mend = sum(ESTIMATES[name] for name in [*ESTIMATES][4:])
    assert plan.allowance("mend", spent=1600.0) == pytest.approx(ESTIMATES["mend"])
    assert plan.allowance("mend", spent=600.0) == pytest.approx(TOTAL - 600 - after_mend)
    assert plan.allowance("interpret", spent=0.0) == TOTAL
    assert plan.allowance("mend", spent=TOTAL) == 0.0


@pytest.mark.parametrize("stage", ["check", "heads", "candidate", "validate"])
def test_a_stage_that_the_run_needs_may_spend_all_that_is_left(stage: str) -> None:
    """Its estimate may be too low, and what is kept for later stages is worth nothing then."""
    plan = plan_budget(ESTIMATES, 4600.0)
    assert plan.allowance(stage, spent=600.0) == 4000.0


def test_a_plan_in_the_middle_of_a_run_counts_what_was_spent() -> None:
    done: Any = ("check", "heads", "candidate")
    plan = plan_budget(ESTIMATES, 4000.0, spent=1900.0, done=done)
    assert set(plan.shares) == {*ESTIMATES} - {*done}
    assert sum(plan.shares.values()) <= 4000 - 1900
    assert plan.needed == pytest.approx(TOTAL + 300)
    assert plan.needed_for_verdict == pytest.approx(3900)
    assert plan.shares["validate"] == ESTIMATES["validate"]
