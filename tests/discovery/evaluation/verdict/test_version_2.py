"""The verdict by version 2 of the rules, from synthetic evidence.

Every combination of outcomes is compared with the table of verdicts (docs/definitions.md), read by
an independent function, and the reasons name the numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from discovery.evaluation import thresholds
from discovery.evaluation.verdict import Findings, Judgement, judge
from discovery.evaluation.verdict.version_2 import decide_minimality, decide_needs
from discovery.graph import (
    AblationEvidence,
    BySide,
    Completeness,
    Control,
    JointAddition,
    Minimality,
    MinimalityCheck,
    PaddingTrial,
    RandomControls,
    Reference,
    Score,
)

GOOD = Control(n=39, n_possible=500, as_good=0, p=1 / 40)
POOR = Control(n=200, n_possible=500, as_good=40, p=41 / 201)
CHECK = MinimalityCheck(checked=2, flips=10_000)


def score(value: float, half: float = 0.01) -> Score:
    return Score(value=value, low=value - half, high=value + half, median=value, share_in_band=1.0)


def gaps(gap_in: float, low_in: float, **changes: Any) -> Completeness:
    return Completeness(
        max_gap_in=gap_in,
        node_in="m0",
        max_gap_out=0.01,
        node_out="a0.h1",
        low=BySide(inside=low_in, outside=0.0),
        **changes,
    )


def row(drop: float, p_holm: float = 0.001, node: str = "m0") -> Minimality:
    return Minimality(node=node, drop=drop, p=p_holm, p_holm=p_holm, n=32)


PARTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "a": {
        "holds": {"faithfulness": score(1.0)},
        "undecided": {"faithfulness": score(0.8, 0.05)},
        "fails": {"faithfulness": score(0.7)},
        "far off": {"faithfulness": score(0.3)},
    },
    "b": {
        "holds": {"knockout": score(0.0)},
        "undecided": {"knockout": score(0.2, 0.05)},
        "fails": {"knockout": score(0.7)},
    },
    "c": {
        "holds": {"completeness": gaps(0.05, 0.0)},
        "undecided": {"completeness": gaps(0.25, 0.15)},
        "fails": {"completeness": gaps(0.31, 0.25)},
        "not_run": {"completeness": None},
    },
    "d": {
        "holds": {"minimality": (row(0.5),)},
        "undecided": {"minimality": (row(0.5, 0.2),)},
        "fails": {"minimality": (row(0.011),)},
    },
    "e": {
        "holds": {"random_controls": RandomControls(size=GOOD, layer=GOOD)},
        "fails": {"random_controls": RandomControls(size=GOOD, layer=POOR)},
        "not_run": {"random_controls": None},
    },
}


@cache
def evidence(**outcomes: str) -> AblationEvidence:
    """Evidence under one ablation in which every condition holds, but for these."""
    fields: dict[str, Any] = {"metric_full": 4.0, "metric_empty": -1.0, "minimal_drop": 0.02}
    for condition, choices in PARTS.items():
        fields |= choices[outcomes.get(condition, "holds")]
    return AblationEvidence(**fields)


def findings(
    resample: AblationEvidence | None = None, mean: AblationEvidence | None = None, **changes: Any
) -> Findings:
    return replace(
        Findings(
            n_heldout=100,
            size=2,
            evidence={"resample": resample or evidence(), "mean": mean or evidence()},
            minimality=CHECK,
            stability=0.95,
        ),
        **changes,
    )


def verdict(*parts: AblationEvidence | None, **changes: Any) -> tuple[str, tuple[str, ...]]:
    judgement: Judgement = judge(findings(*parts, **changes))
    return judgement.verdict, judgement.reasons


def read_table(
    resample: Mapping[str, str], mean: Mapping[str, str], others: Mapping[str, str]
) -> str:
    """Read the verdict off the table: the first row that matches."""
    sides = (resample, mean)
    fails_a = [side["a"] in ("fails", "far off") for side in sides]
    fails_e = [side["e"] == "fails" and side["a"] not in ("fails", "far off") for side in sides]
    if all(fails_a) or any(side["a"] == "far off" for side in sides) or all(fails_e):
        return "rejected"
    outcomes = [*others.values()]
    for side in sides:
        outcomes += [side["a"], side["b"], side["c"]]
        outcomes.append("not_run" if side["a"] == "fails" else side["e"])
    if set(outcomes) == {"holds"}:
        return "verified"
    if "fails" not in outcomes and "undecided" in outcomes:
        return "inconclusive"
    return "partial"


def test_every_combination_gives_the_verdict_of_the_table() -> None:
    """All outcomes of (a), (c), (e) by ablation; (b), (d) and (f) with them."""
    choices = {"a": tuple(PARTS["a"]), "c": tuple(PARTS["c"]), "e": tuple(PARTS["e"])}
    sides = [
        dict(zip(choices, combination, strict=True))
        for combination in itertools.product(*choices.values())
    ]
    count = 0
    for first, second in itertools.product(sides, sides):
        number = len(first["a"]) + 3 * len(second["c"]) + 5 * len(first["e"]) + count
        knockout = tuple(PARTS["b"])[number % 3]
        drop = tuple(PARTS["d"])[number // 3 % 3]
        stability = (0.95, 0.5, None)[number // 9 % 3]
        resample = evidence(**first, b=knockout, d=drop)
        mean = evidence(**second, d=drop)
        others = {"d": drop, "f": {0.95: "holds", 0.5: "fails", None: "not_run"}[stability]}
        expected = read_table(first | {"b": knockout}, second | {"b": "holds"}, others)
        outcome, _ = verdict(resample, mean, stability=stability)
        assert outcome == expected, (first, second, knockout, others)
        count += 1
    assert count == 48**2


@pytest.mark.parametrize("condition", "abcdef")
def test_each_condition_alone_decides(condition: str) -> None:
    """With all else holding: a failure is partial (under both ablations in (a), (e): rejected)."""
    if condition == "f":
        assert verdict(stability=0.7999)[0] == verdict(stability=None)[0] == "partial"
        assert verdict(stability=0.8)[0] == "verified"
        return
    bad = evidence(**{condition: "fails"})
    both = verdict(bad, bad)
    assert both[0] == ("rejected" if condition in "ae" else "partial")
    assert any(reason.startswith(f"({condition})") and "fails" in reason for reason in both[1])
    if condition != "d":
        assert verdict(bad)[0] == verdict(None, bad)[0] == "partial"
    if "undecided" in PARTS[condition]:
        open_ = evidence(**{condition: "undecided"})
        assert verdict(open_, open_)[0] == "inconclusive"
        assert verdict(open_, open_, stability=0.5)[0] == "partial"


def test_verified_if_every_condition_holds() -> None:
    assert verdict() == ("verified", ())
    assert verdict(n_heldout=48)[0] == "verified"


def test_no_behaviour_comes_first_whatever_else_is_wrong() -> None:
    gates = ("heldout: accuracy 0.51 on 100 pairs (lower bound 0.42) is not above chance, 0.5",)
    wrong = evidence(a="far off", e="fails")
    outcome = verdict(wrong, wrong, failed_gates=gates, n_heldout=3, size=0, cut_short="(c)")
    assert outcome == ("no_behaviour", gates)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_heldout": 47}, ["47 held-out pairs", "48"]),
        ({"cut_short": "(e)"}, ["the budget ended before (e)"]),
        ({"evidence": {}, "minimality": None}, ["not judged yet"]),
        ({"undefined": ["mean"]}, ["f is null under mean on discovery pairs"]),
        (
            {"evidence": {"resample": evidence(), "mean": AblationEvidence()}},
            ["f is null under mean"],
        ),
    ],
)
def test_inconclusive_before_it_is_rejected(changes: dict[str, Any], words: list[str]) -> None:
    bad = evidence(a="far off", e="fails")
    outcome, reasons = verdict(bad, bad, **changes)
    assert outcome == "inconclusive"
    assert all(word in reasons[0] for word in words)


def test_an_empty_circuit_is_rejected() -> None:
    assert verdict(size=0) == ("rejected", ("the circuit is empty",))
    outcome, reasons = verdict(size=0, evidence={}, minimality=None)
    assert (outcome, reasons[0]) == ("rejected", "the circuit is empty")


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (0.3, 0.499, "rejected"),
        (0.3, 0.5, "partial"),
        (0.6, 0.79, "partial"),
        (1.3, 1.5, "partial"),
        (1.501, 1.8, "rejected"),
    ],
)
def test_a_far_off_under_one_ablation_is_a_rejection(low: float, high: float, outcome: str) -> None:
    f = Score(value=(low + high) / 2, low=low, high=high)
    assert verdict(evidence().model_copy(update={"faithfulness": f}))[0] == outcome


def test_e_is_not_run_if_a_fails_and_the_reason_says_so() -> None:
    """Nothing is better than alternatives if it is no good (it used to hold with 0 of 200)."""
    judgement = judge(findings(evidence(a="fails")))
    assert judgement.conditions.e.resample == "not_run"
    assert judgement.conditions.e.mean == "holds"
    (reason,) = (reason for reason in judgement.reasons if reason.startswith("(e)"))
    assert "resample: not run, because (a) fails there" in reason
    assert not any(reason.startswith("not run") for reason in judgement.reasons)


def test_what_was_not_run_is_named_and_caps_at_partial() -> None:
    for condition in "ce":
        outcome, reasons = verdict(evidence(**{condition: "not_run"}))
        assert outcome == "partial"
        assert reasons[0].startswith(f"not run: ({condition}) ")
        assert "under resample" in reasons[0]
    assert verdict(minimality=None) == ("partial", ("not run: (d) minimal",))
    assert verdict(stability=None) == ("partial", ("not run: (f) stable",))


@pytest.mark.parametrize(
    ("resample", "mean", "outcome"),
    [
        ((0.02, 0.05), (0.0, 1.0), "holds"),
        ((0.0, 1.0), (0.011, 0.05), "holds"),
        ((0.02, 0.051), (0.0, 1.0), "undecided"),
        ((0.02, 0.051), (0.01, 0.05), "holds"),
        ((0.0199, 0.001), (0.0099, 0.001), "fails"),
        ((0.0199, 0.001), (0.0101, 0.2), "undecided"),
    ],
)
def test_a_node_needs_one_ablation_only(
    resample: tuple[float, float], mean: tuple[float, float], outcome: str
) -> None:
    """δ is 0.02 under resample and 0.01 under mean ablation here."""
    parts: dict[Any, AblationEvidence | None] = {
        "resample": AblationEvidence(minimal_drop=0.02, minimality=(row(*resample),)),
        "mean": AblationEvidence(minimal_drop=0.01, minimality=(row(*mean),)),
    }
    assert decide_needs(parts) == {"m0": outcome}
    assert decide_minimality(parts, CHECK) == outcome


def test_one_node_that_is_not_needed_fails_d_and_one_open_node_leaves_it_open() -> None:
    def decide(*rows: Minimality) -> str:
        part = AblationEvidence(minimal_drop=0.02, minimality=rows)
        return decide_minimality({"resample": part, "mean": part}, CHECK)

    good, bad, open_ = row(0.5, node="m1"), row(0.01, node="m2"), row(0.5, 0.3, node="m3")
    assert (decide(good), decide(good, open_), decide(good, open_, bad)) == (
        "holds",
        "undecided",
        "fails",
    )


def test_a_padded_circuit_fails_d() -> None:
    trials = (
        PaddingTrial(left_out=("m0", "m1"), meets=False, why_not="(a) under mean: f = 0.700"),
        PaddingTrial(left_out=("m1",), meets=True),
    )
    outcome, (reason,) = verdict(minimality=CHECK.model_copy(update={"padding": trials}))
    assert outcome == "partial"
    assert reason == "(d) minimal: fails (without m1 it meets (a) to (c) as well)"
    assert verdict(minimality=CHECK.model_copy(update={"padding": trials[:1]}))[0] == "verified"


def test_unchecked_nodes_are_always_named() -> None:
    unchecked = gaps(
        0.05,
        0.0,
        unchecked=BySide(inside=0, outside=126),
        unchecked_bound=BySide(inside=None, outside=0.104),
    )
    check = CHECK.model_copy(update={"unchecked": 30, "unchecked_bound": 0.12})
    part = evidence().model_copy(update={"completeness": unchecked})
    outcome, reasons = verdict(part, minimality=check)
    assert outcome == "verified"
    assert reasons == (
        "(c) resample: 126 nodes outside were not checked one by one; at most 10.4% of them are "
        "beyond the limit (95%)",
        "(d): 30 nodes were not checked one by one; at most 12.0% of them are not needed (95%)",
    )


@pytest.mark.parametrize(("change", "is_named"), [(0.21, True), (-0.21, True), (0.2, False)])
def test_large_joint_changes_are_named_and_decide_nothing(change: float, is_named: bool) -> None:
    joint = gaps(0.05, 0.0, joint_positive=JointAddition(n=30, change=change))
    outcome, reasons = verdict(evidence().model_copy(update={"completeness": joint}))
    assert outcome == "verified"
    assert reasons == (
        (
            "(c) resample: the 30 outside nodes with a positive effect change f by "
            f"{change:+.3f} together",
        )
        if is_named
        else ()
    )


def test_few_reference_prompts_are_named() -> None:
    few = Reference(source="the corrupted prompts of both splits", alignment="position", size=49)
    part = evidence().model_copy(update={"reference": few})
    outcome, reasons = verdict(None, part)
    assert outcome == "verified"
    assert reasons == (
        "f under mean ablation is relative to these reference prompts: the corrupted prompts of "
        "both splits (49 in the smallest mean)",
    )
    many = part.model_copy(update={"reference": few.model_copy(update={"size": 50})})
    assert verdict(None, many) == ("verified", ())


def test_means_that_disagree_with_themselves_decide_nothing() -> None:
    def with_agreement(part: AblationEvidence, agreement: float) -> AblationEvidence:
        reference = Reference(source="prompts", alignment="position", size=60, agreement=agreement)
        return part.model_copy(update={"reference": reference})

    assert verdict(None, with_agreement(evidence(), 0.05))[0] == "verified"
    judgement = judge(findings(None, with_agreement(evidence(b="fails"), 0.051)))
    assert judgement.verdict == "inconclusive"
    for condition in "abce":
        assert getattr(judgement.conditions, condition).mean == "undecided"
        assert getattr(judgement.conditions, condition).resample == "holds"
    assert judgement.conditions.d == "holds"
    only_by_mean = judge(
        findings(evidence(d="fails"), with_agreement(evidence(), 0.051))
    ).conditions
    assert only_by_mean.d == "undecided"
    assert any("two halves" in reason for reason in judgement.reasons)


@pytest.mark.parametrize(
    ("condition", "numbers"),
    [
        ("a", ["f(C) = 0.700 [0.690, 0.710]", "0.8", "1.2"]),
        ("b", ["f(U∖C) = 0.700 [0.690, 0.710]", "-0.2", "0.2"]),
        ("c", ["m0", "0.310", "at least 0.250"]),
        ("e", ["layer", "40 of 200", "0.204"]),
    ],
)
def test_reasons_name_the_numbers(condition: str, numbers: list[str]) -> None:
    _, reasons = verdict(evidence(**{condition: "fails"}))
    assert all(number in reasons[0] for number in numbers), reasons
    assert "size-matched" not in reasons[0]


def test_the_reason_of_d_names_the_drop_and_what_is_needed() -> None:
    bad = evidence(d="fails")
    _, (reason,) = verdict(bad, bad)
    assert reason == "(d) minimal: fails (m0 drop 0.011 of 0.020, Holm p 0.001)"
    open_ = evidence(d="undecided")
    _, (reason,) = verdict(open_, open_)
    assert reason == "(d) minimal: undecided (m0 drop 0.500 of 0.020, Holm p 0.2, undecided)"


def test_the_thresholds_are_those_of_the_definitions() -> None:
    assert thresholds.as_record() == thresholds.as_record(1) | {
        "a_rejected_beyond": [0.5, 1.5],
        "c_joint_change": 0.2,
        "d_drop_share": 0.5,
        "d_flips_per_node": 400,
        "e_first_alternatives": 39,
        "first_pairs": 32,
        "checked_nodes": 64,
        "reference_agreement": 0.05,
        "reference_size": 50,
    }
    assert (thresholds.count_flips(3), thresholds.count_flips(25)) == (10_000, 10_000)
    assert thresholds.count_flips(50) == 20_000
