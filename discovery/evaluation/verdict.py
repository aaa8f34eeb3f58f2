"""The verdict on a circuit, computed from its evaluation alone.

The verdicts are tried in a fixed order, and the first that matches is given (see
docs/definitions.md, "Verdict"). Its reasons name every condition that fails, is undecided or was
not run, with the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from discovery.evaluation import thresholds
from discovery.evaluation.alternatives import beats_alternatives
from discovery.evaluation.completeness import is_complete
from discovery.evaluation.minimality import is_needed
from discovery.graph import (
    CONDITION_MEANINGS,
    CONDITIONS,
    EVIDENCE_ABLATIONS,
    AblationEvidence,
    Completeness,
    Condition,
    Conditions,
    EvidenceAblation,
    Minimality,
    Outcome,
    OutcomeByAblation,
    RandomControls,
    Score,
    Verdict,
)

EvidenceOrNone = Mapping[EvidenceAblation, AblationEvidence | None]
"""The evidence under each ablation; None or missing if nothing was measured."""


def decide_band(score: Score | None, band: tuple[float, float]) -> Outcome:
    """Decide a condition on f by its interval.

    It holds if the interval lies inside the band, fails if the interval lies outside, and is
    undecided otherwise.
    """
    if score is None or score.low is None or score.high is None:
        return "not_run"
    if band[0] <= score.low and score.high <= band[1]:
        return "holds"
    return "fails" if score.high < band[0] or score.low > band[1] else "undecided"


def decide_outcomes(
    evidence: AblationEvidence | None, stability: float | None
) -> dict[Condition, Outcome]:
    """Decide every condition under one ablation.

    Args:
        evidence: what was measured under the ablation; None if nothing was.
        stability: the mean Jaccard of condition (f); None if it was not run.
    """
    outcomes: dict[Condition, Outcome] = dict.fromkeys(CONDITIONS, "not_run")
    if evidence is None:
        return outcomes
    outcomes["a"] = decide_band(evidence.faithfulness, thresholds.FAITHFULNESS_BAND)
    outcomes["b"] = decide_band(evidence.knockout, thresholds.KNOCKOUT_BAND)
    if evidence.completeness is not None:
        outcomes["c"] = _holds_if(is_complete(evidence.completeness))
    if evidence.minimality is not None:
        outcomes["d"] = _holds_if(all(is_needed(row) for row in evidence.minimality))
    if evidence.random_controls is not None:
        kinds = (evidence.random_controls.size, evidence.random_controls.layer)
        controls = [control for control in kinds if control is not None]
        if controls:
            outcomes["e"] = _holds_if(all(beats_alternatives(control) for control in controls))
    if stability is not None:
        outcomes["f"] = _holds_if(stability >= thresholds.MIN_JACCARD)
    return outcomes


def decide_conditions(evidence: EvidenceOrNone, stability: float | None) -> Conditions:
    """Decide every condition under both ablations."""
    outcomes = {
        ablation: decide_outcomes(evidence.get(ablation), stability)
        for ablation in EVIDENCE_ABLATIONS
    }
    return Conditions(
        **{
            condition: OutcomeByAblation(
                resample=outcomes["resample"][condition], mean=outcomes["mean"][condition]
            )
            for condition in CONDITIONS
        }
    )


def decide_verdict(
    *,
    failed_gates: Sequence[str],
    n_heldout: int,
    size: int,
    evidence: EvidenceOrNone,
    conditions: Conditions,
    stability: float | None,
    cut_short: str | None,
    undefined: Sequence[str] = (),
) -> tuple[Verdict, tuple[str, ...]]:
    """Decide the verdict, and give its reasons.

    Args:
        failed_gates: the gates of the behaviour that do not hold, on either split.
        n_heldout: the number of held-out pairs.
        size: the number of heads and MLPs in the circuit.
        evidence: what was measured under each ablation.
        conditions: the outcome of every condition.
        stability: the mean Jaccard of condition (f); None if it was not run.
        cut_short: what the budget did not reach; None if it sufficed.
        undefined: the ablations under which f is null on discovery pairs, so that nothing could be
            searched for.
    """
    if failed_gates:
        return "no_behaviour", tuple(failed_gates)
    reasons = _explain(evidence, conditions, stability)
    blocking = _blocking_reasons(n_heldout, evidence, undefined, cut_short)
    if blocking:
        return "inconclusive", (*blocking, *reasons)
    if size == 0:
        return "rejected", ("the circuit is empty", *reasons)
    failing = {
        ablation: {c for c in CONDITIONS if conditions.of(c).under(ablation) == "fails"}
        for ablation in EVIDENCE_ABLATIONS
    }
    if all({"a", "b"} <= failed or "e" in failed for failed in failing.values()):
        return "rejected", reasons
    outcomes = {conditions.of(c).under(a) for c in CONDITIONS for a in EVIDENCE_ABLATIONS}
    if outcomes == {"holds"}:
        return "verified", reasons
    if "fails" not in outcomes and "undecided" in outcomes:
        return "inconclusive", reasons
    return "partial", reasons


def explain_repeated_looks(looks: int | None) -> tuple[str, ...]:
    """Return the reason to add if other circuits have looked at the held-out pairs too.

    It changes no verdict.

    Args:
        looks: how many circuits have looked at them, this one included; None if none has.
    """
    if looks is None or looks < 2:
        return ()
    return (
        f"these held-out pairs have been looked at with {looks} circuits: "
        "draw fresh pairs (--seed)",
    )


def _holds_if(is_met: bool) -> Outcome:
    return "holds" if is_met else "fails"


def _blocking_reasons(
    n_heldout: int, evidence: EvidenceOrNone, undefined: Sequence[str], cut_short: str | None
) -> list[str]:
    """Return why nothing can be concluded, if that is so."""
    reasons = []
    if n_heldout < thresholds.MIN_HELDOUT:
        reasons.append(f"{n_heldout} held-out pairs; {thresholds.MIN_HELDOUT} are needed")
    reasons += [
        f"f is null under {ablation}: ablating everything does not lower the metric reliably"
        for ablation, measured in evidence.items()
        if measured is not None and measured.faithfulness is None
    ]
    reasons += [
        f"f is null under {ablation} on discovery pairs: "
        "ablating everything does not lower the metric reliably"
        for ablation in undefined
    ]
    if cut_short:
        reasons.append(f"the budget ended before {cut_short}")
    return reasons


def _explain(
    evidence: EvidenceOrNone, conditions: Conditions, stability: float | None
) -> tuple[str, ...]:
    """Name every condition that fails, is undecided or was not run, and every missing control."""
    reasons: list[str] = []
    not_run: list[str] = []
    for condition in CONDITIONS:
        title = f"({condition}) {CONDITION_MEANINGS[condition].name}"
        missing: list[EvidenceAblation] = []
        for ablation in EVIDENCE_ABLATIONS:
            outcome = conditions.of(condition).under(ablation)
            if outcome == "not_run":
                missing.append(ablation)
            elif outcome != "holds":
                numbers = _numbers(condition, evidence.get(ablation), stability)
                reasons.append(f"{title}, {ablation}: {outcome}{numbers}")
        if missing:
            not_run.append(title + (f" under {missing[0]}" if len(missing) == 1 else ""))
    if not_run:
        reasons.append(f"not run: {', '.join(not_run)}")
    reasons += _missing_controls(evidence)
    return tuple(dict.fromkeys(reasons))


def _missing_controls(evidence: EvidenceOrNone) -> list[str]:
    reasons = []
    for ablation, measured in evidence.items():
        if measured is None or measured.random_controls is None:
            continue
        controls = measured.random_controls
        for kind, control in (("size", controls.size), ("layer", controls.layer)):
            if control is None:
                reasons.append(
                    f"(e) {ablation}: there is no other {kind}-matched circuit, "
                    "so that control is null"
                )
    return reasons


def _numbers(
    condition: Condition, evidence: AblationEvidence | None, stability: float | None
) -> str:
    """Return the numbers behind an outcome, in parentheses; empty if there are none."""
    if condition == "f":
        if stability is None:
            return ""
        return f" (mean Jaccard {stability:.2f}, needed {thresholds.MIN_JACCARD})"
    if evidence is None:
        return ""
    if condition == "a":
        return _score_numbers("f(C)", evidence.faithfulness, thresholds.FAITHFULNESS_BAND)
    if condition == "b":
        return _score_numbers("f(U∖C)", evidence.knockout, thresholds.KNOCKOUT_BAND)
    if condition == "c":
        return _completeness_numbers(evidence.completeness)
    if condition == "d":
        return _minimality_numbers(evidence.minimality)
    return _control_numbers(evidence.random_controls)


def _score_numbers(name: str, score: Score | None, band: tuple[float, float]) -> str:
    if score is None:
        return ""
    return (
        f" ({name} = {score.value:.3f} [{score.low:.3f}, {score.high:.3f}], "
        f"bounds {band[0]} to {band[1]})"
    )


def _completeness_numbers(completeness: Completeness | None) -> str:
    if completeness is None:
        return ""
    gap_in = completeness.max_gap_in or 0
    gap_out = completeness.max_gap_out or 0
    parts = []
    if gap_in > thresholds.MAX_GAP_IN:
        parts.append(f"without {completeness.node_in} the gap is {gap_in:.3f}")
    if gap_out > thresholds.MAX_GAP_OUT:
        parts.append(f"with {completeness.node_out} f changes by {gap_out:.3f}")
    return f" ({'; '.join(parts)})"


def _minimality_numbers(rows: Sequence[Minimality] | None) -> str:
    if rows is None:
        return ""
    parts = [
        f"{row.node} drop {row.drop:.3f}, Holm p {row.p_holm:.3g}"
        for row in rows
        if not is_needed(row)
    ]
    return f" ({'; '.join(parts)})"


def _control_numbers(controls: RandomControls | None) -> str:
    if controls is None:
        return ""
    parts = [
        f"{kind}-matched: {control.as_good} of {control.n} as good, p {control.p:.3f}"
        for kind, control in (("size", controls.size), ("layer", controls.layer))
        if control is not None and not beats_alternatives(control)
    ]
    return f" ({'; '.join(parts)})"
