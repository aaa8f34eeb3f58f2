"""The verdict by version 1 of the rules, from synthetic evidence.

Every row of the table of verdicts (docs/definitions.md, "Version 1") is tried in its order, and the
reasons name the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from discovery.evaluation import thresholds
from discovery.evaluation.verdict import Findings, decide_band, judge
from discovery.evaluation.verdict.version_1 import decide_conditions, decide_outcomes
from discovery.graph import (
    CONDITIONS,
    AblationEvidence,
    Completeness,
    Control,
    Minimality,
    RandomControls,
    Score,
)

GOOD = Control(n=200, n_possible=500, as_good=0, p=1 / 201)
POOR = Control(n=200, n_possible=500, as_good=40, p=41 / 201)


def score(value: float, half: float = 0.01) -> Score:
    return Score(value=value, low=value - half, high=value + half, median=value, share_in_band=1.0)


def evidence(**changes: Any) -> AblationEvidence:
    """Every condition holds, but for the changes."""
    holds: dict[str, Any] = {
        "metric_full": 4.0,
        "metric_empty": -1.0,
        "faithfulness": score(1.0),
        "knockout": score(0.0),
        "completeness": Completeness(
            max_gap_in=0.05, node_in="m0", max_gap_out=0.01, node_out="a0.h1"
        ),
        "minimality": (Minimality(node="m0", drop=0.9, p=0.0002, p_holm=0.0002),),
        "random_controls": RandomControls(size=GOOD, layer=GOOD),
    }
    return AblationEvidence(**{**holds, **changes})


FAIL: dict[str, dict[str, Any]] = {
    "a": {"faithfulness": score(0.5)},
    "b": {"knockout": score(0.7)},
    "c": {
        "completeness": Completeness(
            max_gap_in=0.31, node_in="m0", max_gap_out=0.01, node_out="a0.h1"
        )
    },
    "d": {"minimality": (Minimality(node="m0", drop=0.011, p=0.2, p_holm=0.4),)},
    "e": {"random_controls": RandomControls(size=GOOD, layer=POOR)},
}
UNDECIDED: dict[str, dict[str, Any]] = {
    "a": {"faithfulness": score(0.8, 0.05)},
    "b": {"knockout": score(0.2, 0.05)},
}
NOT_RUN: dict[str, dict[str, Any]] = {
    "c": {"completeness": None},
    "d": {"minimality": None},
    "e": {"random_controls": None},
}


def verdict(
    resample: AblationEvidence | None = None,
    mean: AblationEvidence | None = None,
    *,
    stability: float | None = 0.95,
    behaviour: Sequence[str] = (),
    n_heldout: int = 100,
    size: int = 3,
    cut_short: str | None = None,
) -> tuple[str, tuple[str, ...]]:
    both_evidence: Any = {"resample": resample or evidence(), "mean": mean or evidence()}
    findings = Findings(
        failed_gates=behaviour,
        n_heldout=n_heldout,
        size=size,
        evidence=both_evidence,
        stability=stability,
        cut_short=cut_short,
    )
    judgement = judge(findings, 1)
    return judgement.verdict, judgement.reasons


def evidence_with(*parts: dict[str, Any]) -> AblationEvidence:
    return evidence(**{name: value for part in parts for name, value in part.items()})


def test_verified_if_every_condition_holds() -> None:
    assert verdict() == ("verified", ())
    assert verdict(n_heldout=48)[0] == "verified"


def test_no_behaviour_comes_first_whatever_else_is_wrong() -> None:
    gates = ["heldout: accuracy 0.51 on 100 pairs (lower bound 0.42) is not above chance, 0.5"]
    wrong = evidence_with(FAIL["a"], FAIL["b"], {"faithfulness": None})
    assert verdict(wrong, wrong, behaviour=gates, n_heldout=3, size=0, cut_short="(c)") == (
        "no_behaviour",
        tuple(gates),
    )


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"n_heldout": 47}, ["47 held-out pairs", "48"]),
        ({"resample": evidence(faithfulness=None, knockout=None)}, ["f is null under resample"]),
        ({"mean": evidence(faithfulness=None, knockout=None)}, ["f is null under mean"]),
        ({"cut_short": "(e)"}, ["the budget ended before (e)"]),
    ],
)
def test_inconclusive_before_it_is_rejected(made: dict[str, Any], words: list[str]) -> None:
    """Few pairs, a null f and an ended budget come before an empty circuit and before failures."""
    for size in (0, 3):
        outcome, reasons = verdict(**{"size": size, **made})
        assert outcome == "inconclusive"
        assert all(word in reasons[0] for word in words)
    bad = evidence_with(FAIL["a"], FAIL["b"], FAIL["e"])
    arguments = {"resample": bad, "mean": bad} | made
    assert verdict(**arguments)[0] == "inconclusive"


def test_every_blocking_reason_is_given() -> None:
    _, reasons = verdict(
        mean=evidence(faithfulness=None, knockout=None), n_heldout=12, cut_short="(d)"
    )
    assert [reason.split(":")[0] for reason in reasons[:3]] == [
        "12 held-out pairs; 48 are needed",
        "f is null under mean",
        "the budget ended before (d)",
    ]


def test_a_run_without_any_evidence_has_a_verdict() -> None:
    """The budget ended before the circuit was looked at, or there is no circuit."""
    for cut_short, expected in (("heads", "inconclusive"), (None, "rejected")):
        findings = Findings(n_heldout=100, size=0, evidence={}, cut_short=cut_short)
        judgement = judge(findings, 1)
        assert judgement.verdict == expected
        assert judgement.reasons[0] == (
            "the budget ended before heads" if cut_short else "the circuit is empty"
        )


def test_rejected_if_the_circuit_is_empty() -> None:
    outcome, reasons = verdict(size=0)
    assert outcome == "rejected"
    assert reasons[0] == "the circuit is empty"


@pytest.mark.parametrize(
    ("resample", "mean", "expected"),
    [
        ("ab", "ab", "rejected"),
        ("e", "e", "rejected"),
        ("ab", "e", "rejected"),
        ("e", "ab", "rejected"),
        ("abcde", "abcde", "rejected"),
        ("ab", "", "partial"),
        ("e", "", "partial"),
        ("a", "a", "partial"),
        ("b", "b", "partial"),
        ("ab", "a", "partial"),
        ("ab", "b", "partial"),
        ("cd", "cd", "partial"),
        ("c", "", "partial"),
        ("", "d", "partial"),
    ],
)
def test_rejected_takes_both_ablations(resample: str, mean: str, expected: str) -> None:
    """(a) and (b) both, or (e), under each of them; anything less that fails is partial."""
    outcome, reasons = verdict(
        evidence_with(*(FAIL[c] for c in resample)), evidence_with(*(FAIL[c] for c in mean))
    )
    assert outcome == expected
    for ablation, failed in (("resample", resample), ("mean", mean)):
        for condition in "abcde":
            matching = [
                reason
                for reason in reasons
                if reason.startswith(f"({condition})") and f", {ablation}: fails" in reason
            ]
            assert len(matching) == (condition in failed)


def test_failing_a_and_undecided_b_is_no_rejection() -> None:
    failing = evidence_with(FAIL["a"], UNDECIDED["b"])
    assert verdict(failing, failing)[0] == "partial"


@pytest.mark.parametrize("condition", sorted(UNDECIDED))
def test_inconclusive_if_nothing_fails_and_something_is_undecided(condition: str) -> None:
    outcome, reasons = verdict(evidence_with(UNDECIDED[condition]))
    assert outcome == "inconclusive"
    assert reasons[0].startswith(f"({condition})")
    assert "undecided" in reasons[0]
    other = next(c for c in "dce" if c != condition)
    assert verdict(evidence_with(UNDECIDED[condition]), evidence_with(FAIL[other]))[0] == "partial"
    assert verdict(evidence_with(UNDECIDED[condition]), stability=0.5)[0] == "partial"


@pytest.mark.parametrize("condition", sorted(NOT_RUN))
def test_what_was_not_run_caps_at_partial(condition: str) -> None:
    outcome, reasons = verdict(evidence_with(NOT_RUN[condition]))
    assert outcome == "partial"
    assert any(
        reason.startswith("not run: ")
        and f"({condition}) " in reason
        and "under resample" in reason
        for reason in reasons
    )


def test_stability_that_was_not_measured_caps_at_partial_and_is_named_once() -> None:
    outcome, reasons = verdict(stability=None)
    assert outcome == "partial"
    assert reasons == ("not run: (f) stable",)


@pytest.mark.parametrize(
    ("stability", "expected"),
    [(0.8, "verified"), (1.0, "verified"), (0.7999, "partial"), (0.0, "partial")],
)
def test_stability(stability: float, expected: str) -> None:
    outcome, reasons = verdict(stability=stability)
    assert outcome == expected
    assert bool(reasons) is (expected == "partial")
    assert all("0.8" in reason for reason in reasons)


def test_a_control_without_alternatives_is_named_and_the_other_decides() -> None:
    half_null = evidence_with({"random_controls": RandomControls(size=GOOD, layer=None)})
    outcome, reasons = verdict(half_null, half_null)
    assert outcome == "verified"
    assert len(reasons) == 2
    assert all("no other layer-matched circuit" in reason for reason in reasons)
    none = evidence_with({"random_controls": RandomControls(size=None, layer=None)})
    outcome, reasons = verdict(none, none)
    assert outcome == "partial"
    assert sum("is null" in reason for reason in reasons) == 4


@pytest.mark.parametrize(
    ("condition", "numbers"),
    [
        ("a", ["f(C) = 0.500 [0.490, 0.510]", "0.8", "1.2"]),
        ("b", ["f(U∖C) = 0.700 [0.690, 0.710]", "-0.2", "0.2"]),
        ("c", ["m0", "0.310"]),
        ("d", ["m0", "0.011", "0.4"]),
        ("e", ["layer", "40 of 200", "0.204"]),
    ],
)
def test_reasons_name_the_numbers(condition: str, numbers: list[str]) -> None:
    _, (reason,) = verdict(evidence_with(FAIL[condition]))
    assert all(number in reason for number in numbers), reason
    assert "size-matched" not in reason


def test_both_gaps_of_c_are_named_if_both_are_too_large() -> None:
    gaps = {
        "completeness": Completeness(
            max_gap_in=0.25, node_in="m0", max_gap_out=0.15, node_out="a1.h1"
        )
    }
    _, (reason,) = verdict(evidence_with(gaps))
    assert all(word in reason for word in ("m0", "0.250", "a1.h1", "0.150"))


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (0.8, 1.2, "holds"),
        (0.9, 1.1, "holds"),
        (0.79, 1.0, "undecided"),
        (1.0, 1.21, "undecided"),
        (0.7, 1.3, "undecided"),
        (0.5, 0.8, "undecided"),
        (0.5, 0.7999, "fails"),
        (1.2001, 1.4, "fails"),
        (None, None, "not_run"),
    ],
)
def test_intervals_inside_outside_or_across_the_bounds(
    low: float | None, high: float | None, outcome: str
) -> None:
    assert (
        decide_band(Score(value=1.0, low=low, high=high), thresholds.FAITHFULNESS_BAND) == outcome
    )


def test_knockout_is_bounded_on_both_sides() -> None:
    for value, outcome in (
        (-0.25, "fails"),
        (-0.2, "undecided"),
        (-0.15, "holds"),
        (0.15, "holds"),
        (0.25, "fails"),
    ):
        assert decide_outcomes(evidence(knockout=score(value)), None)["b"] == outcome


def test_conditions_without_evidence_are_not_run() -> None:
    assert set(decide_outcomes(None, 1.0).values()) == {"not_run"}
    conditions = decide_conditions({"resample": evidence()}, 0.9)
    assert {conditions.under(c, "resample") for c in CONDITIONS} == {"holds"}
    assert {conditions.under(c, "mean") for c in "abcde"} == {"not_run"}


def test_the_thresholds_are_those_of_the_interfaces() -> None:
    assert thresholds.as_record(1) == {
        "a_faithfulness": [0.8, 1.2],
        "b_knockout": [-0.2, 0.2],
        "c_gap_in": 0.2,
        "c_gap_out": 0.1,
        "d_drop": 0.02,
        "d_alpha": 0.05,
        "d_flips": 10_000,
        "e_alpha": 0.05,
        "e_alternatives": 200,
        "e_pairs": 32,
        "e_tie": 1e-4,
        "f_jaccard": 0.8,
        "f_resamples": 20,
        "min_heldout": 48,
    }
