"""The verdict by version 1 of the rules, in which every condition has an outcome by ablation."""

from __future__ import annotations

from collections.abc import Sequence

from discovery.evaluation import thresholds
from discovery.evaluation.verdict.findings import EvidenceOrNone, Findings, Judgement
from discovery.evaluation.verdict.reasons import (
    blocking_reasons,
    decide_band,
    decide_controls,
    format_control_numbers,
    format_score_numbers,
    holds_if,
    name_missing_controls,
)
from discovery.evaluation.version_1 import is_complete, is_needed
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
    Verdict,
)


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
        outcomes["c"] = holds_if(is_complete(evidence.completeness))
    if evidence.minimality is not None:
        outcomes["d"] = holds_if(all(is_needed(row) for row in evidence.minimality))
    outcomes["e"] = decide_controls(evidence.random_controls)
    if stability is not None:
        outcomes["f"] = holds_if(stability >= thresholds.MIN_JACCARD)
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


def judge(findings: Findings) -> Judgement:
    """Decide every condition and the verdict, with reasons."""
    conditions = decide_conditions(findings.evidence, findings.stability)
    verdict, reasons = _decide_verdict(findings, conditions)
    return Judgement(conditions, verdict, reasons)


def _decide_verdict(findings: Findings, conditions: Conditions) -> tuple[Verdict, tuple[str, ...]]:
    if findings.failed_gates:
        return "no_behaviour", tuple(findings.failed_gates)
    reasons = _explain(findings.evidence, conditions, findings.stability)
    blocking = blocking_reasons(findings)
    if blocking:
        return "inconclusive", (*blocking, *reasons)
    if findings.size == 0:
        return "rejected", ("the circuit is empty", *reasons)
    failing = {
        ablation: {c for c in CONDITIONS if conditions.under(c, ablation) == "fails"}
        for ablation in EVIDENCE_ABLATIONS
    }
    if all({"a", "b"} <= failed or "e" in failed for failed in failing.values()):
        return "rejected", reasons
    outcomes = {conditions.under(c, a) for c in CONDITIONS for a in EVIDENCE_ABLATIONS}
    if outcomes == {"holds"}:
        return "verified", reasons
    if "fails" not in outcomes and "undecided" in outcomes:
        return "inconclusive", reasons
    return "partial", reasons


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
            outcome = conditions.under(condition, ablation)
            if outcome == "not_run":
                missing.append(ablation)
            elif outcome != "holds":
                numbers = _numbers(condition, evidence.get(ablation), stability)
                reasons.append(f"{title}, {ablation}: {outcome}{numbers}")
        if missing:
            not_run.append(title + (f" under {missing[0]}" if len(missing) == 1 else ""))
    if not_run:
        reasons.append(f"not run: {', '.join(not_run)}")
    reasons += name_missing_controls(evidence)
    return tuple(dict.fromkeys(reasons))


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
        return format_score_numbers("f(C)", evidence.faithfulness, thresholds.FAITHFULNESS_BAND)
    if condition == "b":
        return format_score_numbers("f(U∖C)", evidence.knockout, thresholds.KNOCKOUT_BAND)
    if condition == "c":
        return _completeness_numbers(evidence.completeness)
    if condition == "d":
        return _minimality_numbers(evidence.minimality)
    return format_control_numbers(evidence.random_controls)


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
