"""The verdict by version 2 of the rules.

(a), (b), (c) and (e) have an outcome under each ablation; (d) and (f) have one status. If f under
mean ablation depends on which half of the reference prompts the means are taken over, nothing that
rests on these means is decided.
"""

from __future__ import annotations

from collections.abc import Iterable

from discovery.evaluation import thresholds
from discovery.evaluation.minimality import decide_nodes
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
    MinimalityCheck,
    Outcome,
    OutcomeByAblation,
    Reference,
    Score,
    Side,
    Verdict,
)

CIRCUIT_SIDES: tuple[Side, ...] = ("inside", "outside")


def judge(findings: Findings) -> Judgement:
    """Decide every condition and the verdict, with reasons."""
    conditions = decide_conditions(findings)
    verdict, reasons = _decide_verdict(findings, conditions)
    return Judgement(conditions, verdict, reasons)


def decide_conditions(findings: Findings) -> Conditions:
    """Decide every condition."""
    by_ablation = {a: decide_outcomes(findings.evidence.get(a)) for a in EVIDENCE_ABLATIONS}

    def outcome_by_ablation(condition: Condition) -> OutcomeByAblation:
        return OutcomeByAblation(
            resample=by_ablation["resample"][condition], mean=by_ablation["mean"][condition]
        )

    stability: Outcome = "not_run"
    if findings.stability is not None:
        stability = holds_if(findings.stability >= thresholds.MIN_JACCARD)
    return Conditions(
        a=outcome_by_ablation("a"),
        b=outcome_by_ablation("b"),
        c=outcome_by_ablation("c"),
        d=decide_minimality(findings.evidence, findings.minimality),
        e=outcome_by_ablation("e"),
        f=stability,
    )


def decide_outcomes(evidence: AblationEvidence | None) -> dict[Condition, Outcome]:
    """Decide the conditions that have an outcome under each ablation."""
    outcomes: dict[Condition, Outcome] = dict.fromkeys(("a", "b", "c", "e"), "not_run")
    if evidence is None:
        return outcomes
    outcomes["a"] = decide_band(evidence.faithfulness, thresholds.FAITHFULNESS_BAND)
    outcomes["b"] = decide_band(evidence.knockout, thresholds.KNOCKOUT_BAND)
    outcomes["c"] = decide_completeness(evidence.completeness)
    if outcomes["a"] != "fails":
        outcomes["e"] = decide_controls(evidence.random_controls)
    if not agrees_with_itself(evidence.reference):
        outcomes = {c: "undecided" if o != "not_run" else o for c, o in outcomes.items()}
    return outcomes


def decide_completeness(completeness: Completeness | None) -> Outcome:
    """Decide condition (c).

    It fails if a simultaneous lower bound exceeds its limit, holds if no gap does, and is undecided
    otherwise.
    """
    if completeness is None:
        return "not_run"
    low = completeness.low
    limits = {"inside": thresholds.MAX_GAP_IN, "outside": thresholds.MAX_GAP_OUT}
    if low is not None and any((low.on(side) or 0.0) > limits[side] for side in CIRCUIT_SIDES):
        return "fails"
    gaps = {"inside": completeness.max_gap_in, "outside": completeness.max_gap_out}
    is_small = all((gaps[side] or 0.0) <= limits[side] for side in CIRCUIT_SIDES)
    return "holds" if is_small else "undecided"


def decide_minimality(evidence: EvidenceOrNone, check: MinimalityCheck | None) -> Outcome:
    """Decide condition (d).

    It fails if a checked node is not needed or if the circuit is padded, and is undecided if a node
    is.
    """
    if check is None:
        return "not_run"
    if any(trial.meets for trial in check.padding):
        return "fails"
    outcomes = set(decide_needs(evidence).values())
    for outcome in ("fails", "undecided"):
        if outcome in outcomes:
            return "fails" if outcome == "fails" else "undecided"
    return "holds"


def decide_needs(evidence: EvidenceOrNone) -> dict[str, Outcome]:
    """Decide for each checked node whether it is needed.

    A drop by means that do not agree with themselves makes a node undecided at most, and its
    absence does not make it fail.
    """
    rows = {}
    minimal_drops = {}
    is_doubtful = False
    for ablation, part in evidence.items():
        if part is None or part.minimality is None or part.minimal_drop is None:
            continue
        if not agrees_with_itself(part.reference):
            is_doubtful = True
            continue
        rows[ablation] = part.minimality
        minimal_drops[ablation] = part.minimal_drop
    needs = decide_nodes(rows, minimal_drops)
    if is_doubtful:
        needs = {v: "undecided" if outcome == "fails" else outcome for v, outcome in needs.items()}
    return needs


def agrees_with_itself(reference: Reference | None) -> bool:
    """Whether f by two halves of the reference prompts is the same, as far as it was measured."""
    if reference is None or reference.agreement is None:
        return True
    return reference.agreement <= thresholds.MAX_REFERENCE_DISAGREEMENT


def _decide_verdict(findings: Findings, conditions: Conditions) -> tuple[Verdict, tuple[str, ...]]:
    if findings.failed_gates:
        return "no_behaviour", tuple(findings.failed_gates)
    reasons = explain(findings, conditions)
    blocking = blocking_reasons(findings)
    if blocking:
        return "inconclusive", (*blocking, *reasons)
    if findings.size == 0:
        return "rejected", ("the circuit is empty", *reasons)
    if _is_rejected(findings.evidence, conditions):
        return "rejected", reasons
    outcomes = {conditions.under(c, a) for c in CONDITIONS for a in EVIDENCE_ABLATIONS}
    if outcomes == {"holds"}:
        return "verified", reasons
    if "fails" not in outcomes and "undecided" in outcomes:
        return "inconclusive", reasons
    return "partial", reasons


def _is_rejected(evidence: EvidenceOrNone, conditions: Conditions) -> bool:
    """Whether (a) fails under both ablations or far under one, or (e) fails under both."""
    failing_a = [a for a in EVIDENCE_ABLATIONS if conditions.under("a", a) == "fails"]
    failing_e = [a for a in EVIDENCE_ABLATIONS if conditions.under("e", a) == "fails"]
    if len(failing_a) == len(EVIDENCE_ABLATIONS) or len(failing_e) == len(EVIDENCE_ABLATIONS):
        return True
    return any(_is_far_off(evidence.get(ablation)) for ablation in failing_a)


def _is_far_off(evidence: AblationEvidence | None) -> bool:
    score: Score | None = None if evidence is None else evidence.faithfulness
    return decide_band(score, thresholds.REJECTION_BAND) == "fails"


def explain(findings: Findings, conditions: Conditions) -> tuple[str, ...]:
    """Name every condition that fails, is undecided or was not run, and what was left unchecked."""
    reasons: list[str] = []
    not_run: list[str] = []
    for condition in CONDITIONS:
        title = f"({condition}) {CONDITION_MEANINGS[condition].name}"
        if conditions.has_one_status(condition):
            outcome = conditions.under(condition, "resample")
            if outcome == "not_run":
                not_run.append(title)
            elif outcome != "holds":
                numbers = _single_status_numbers(condition, findings)
                reasons.append(f"{title}: {outcome}{numbers}")
            continue
        missing: list[EvidenceAblation] = []
        for ablation in EVIDENCE_ABLATIONS:
            outcome = conditions.under(condition, ablation)
            if outcome != "not_run":
                if outcome != "holds":
                    numbers = _numbers(condition, findings.evidence.get(ablation))
                    reasons.append(f"{title}, {ablation}: {outcome}{numbers}")
            elif condition == "e" and conditions.under("a", ablation) == "fails":
                reasons.append(
                    f"{title}, {ablation}: not run, because (a) fails there; a set that does not "
                    "do the task is better than no other"
                )
            else:
                missing.append(ablation)
        if missing:
            not_run.append(title + (f" under {missing[0]}" if len(missing) == 1 else ""))
    if not_run:
        reasons.append(f"not run: {', '.join(not_run)}")
    reasons += name_missing_controls(findings.evidence)
    reasons += _explain_unchecked(findings)
    reasons += _explain_joint_changes(findings.evidence)
    reasons += _explain_references(findings.evidence)
    return tuple(dict.fromkeys(reasons))


def _numbers(condition: Condition, evidence: AblationEvidence | None) -> str:
    """Return the numbers behind an outcome under one ablation; empty if there are none."""
    if evidence is None:
        return ""
    if condition == "a":
        return format_score_numbers("f(C)", evidence.faithfulness, thresholds.FAITHFULNESS_BAND)
    if condition == "b":
        return format_score_numbers("f(U∖C)", evidence.knockout, thresholds.KNOCKOUT_BAND)
    if condition == "c":
        return _completeness_numbers(evidence.completeness)
    return format_control_numbers(evidence.random_controls)


def _single_status_numbers(condition: Condition, findings: Findings) -> str:
    if condition == "f":
        needed = thresholds.MIN_JACCARD
        return f" (mean weighted Jaccard {findings.stability or 0.0:.2f}, needed {needed})"
    parts = []
    needs = decide_needs(findings.evidence)
    for name, outcome in needs.items():
        if outcome != "holds":
            parts.append(_describe_need(name, outcome, findings.evidence))
    check = findings.minimality
    for trial in check.padding if check else ():
        if trial.meets:
            parts.append(f"without {', '.join(trial.left_out)} it meets (a) to (c) as well")
    return f" ({'; '.join(parts)})" if parts else ""


def _describe_need(name: str, outcome: Outcome, evidence: EvidenceOrNone) -> str:
    """Return a node's larger drop, as a share of δ, with its δ and p."""
    best: tuple[float, Minimality, float] | None = None
    for part in evidence.values():
        if part is None or part.minimality is None or part.minimal_drop is None:
            continue
        for row in part.minimality:
            share = (row.drop or 0.0) / part.minimal_drop if part.minimal_drop else 0.0
            if row.node == name and (best is None or share > best[0]):
                best = (share, row, part.minimal_drop)
    if best is None:
        return name
    _, row, delta = best
    text = f"{name} drop {row.drop:.3f} of {delta:.3f}, Holm p {row.p_holm:.3g}"
    return f"{text}, undecided" if outcome == "undecided" else text


def _completeness_numbers(completeness: Completeness | None) -> str:
    if completeness is None:
        return ""
    gap_in = completeness.max_gap_in or 0.0
    gap_out = completeness.max_gap_out or 0.0
    low = completeness.low
    parts = []
    if gap_in > thresholds.MAX_GAP_IN:
        text = f"without {completeness.node_in} the gap is {gap_in:.3f}"
        parts.append(f"{text}, at least {low.inside:.3f}" if low else text)
    if gap_out > thresholds.MAX_GAP_OUT:
        text = f"with {completeness.node_out} f changes by {gap_out:.3f}"
        parts.append(f"{text}, at least {low.outside:.3f}" if low else text)
    return f" ({'; '.join(parts)})" if parts else ""


def _explain_unchecked(findings: Findings) -> Iterable[str]:
    """Say how many nodes were not checked one by one, and what they may hide."""
    for ablation, part in findings.evidence.items():
        completeness = part.completeness if part else None
        if completeness is None or completeness.unchecked is None:
            continue
        for side in CIRCUIT_SIDES:
            count = completeness.unchecked.on(side)
            bound = completeness.unchecked_bound.on(side) if completeness.unchecked_bound else None
            if count and bound is not None:
                yield (
                    f"(c) {ablation}: {count:.0f} nodes {side} were not checked one by one; at "
                    f"most {bound:.1%} of them are beyond the limit (95%)"
                )
    check = findings.minimality
    if check is not None and check.unchecked and check.unchecked_bound is not None:
        yield (
            f"(d): {check.unchecked} nodes were not checked one by one; at most "
            f"{check.unchecked_bound:.1%} of them are not needed (95%)"
        )


def _explain_joint_changes(evidence: EvidenceOrNone) -> Iterable[str]:
    for ablation, part in evidence.items():
        completeness = part.completeness if part else None
        if completeness is None:
            continue
        for sign, joint in (
            ("positive", completeness.joint_positive),
            ("negative", completeness.joint_negative),
        ):
            change = joint.change if joint else None
            if joint and change is not None and abs(change) > thresholds.MAX_JOINT_CHANGE:
                yield (
                    f"(c) {ablation}: the {joint.n} outside nodes with a {sign} effect change f by "
                    f"{change:+.3f} together"
                )


def _explain_references(evidence: EvidenceOrNone) -> Iterable[str]:
    mean = evidence.get("mean")
    reference = mean.reference if mean else None
    if reference is None:
        return
    if not agrees_with_itself(reference):
        yield (
            f"mean: f differs by {reference.agreement:.3f} between two halves of the reference "
            "prompts, so nothing is decided under mean ablation; give more of them"
        )
    if reference.size is not None and reference.size < thresholds.MIN_REFERENCE_SIZE:
        yield (
            f"f under mean ablation is relative to these reference prompts: {reference.source} "
            f"({reference.size} in the smallest mean)"
        )
