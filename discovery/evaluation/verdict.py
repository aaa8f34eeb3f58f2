"""The verdict, computed from the evaluation alone: the first that matches, each failure named with its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from discovery.evaluation import thresholds
from discovery.evaluation.alternatives import beats_alternatives
from discovery.evaluation.completeness import is_complete
from discovery.evaluation.minimality import is_needed
from discovery.graph import (
    CONDITIONS,
    EVIDENCE_ABLATIONS,
    AblationEvidence,
    Condition,
    Conditions,
    EvidenceAblation,
    Outcome,
    OutcomeByAblation,
    Score,
    Verdict,
)

CONDITION_MEANINGS: dict[Condition, str] = {
    "a": "sufficient",
    "b": "necessary",
    "c": "complete",
    "d": "minimal",
    "e": "better than alternatives",
    "f": "stable",
}


def decide_band(score: Score | None, band: tuple[float, float]) -> Outcome:
    """Holds where the interval lies inside the band, fails where it lies outside, else undecided."""
    if score is None or score.low is None or score.high is None:
        return "not_run"
    if band[0] <= score.low and score.high <= band[1]:
        return "holds"
    return "fails" if score.high < band[0] or score.low > band[1] else "undecided"


def decide_outcomes(
    evidence: AblationEvidence | None, stability: float | None
) -> dict[Condition, Outcome]:
    """The conditions under one ablation."""
    out: dict[Condition, Outcome] = dict.fromkeys(CONDITIONS, "not_run")
    if evidence is None:
        return out
    out["a"] = decide_band(evidence.faithfulness, thresholds.FAITHFULNESS_BAND)
    out["b"] = decide_band(evidence.knockout, thresholds.KNOCKOUT_BAND)
    if evidence.completeness is not None:
        out["c"] = "holds" if is_complete(evidence.completeness) else "fails"
    if evidence.minimality is not None:
        out["d"] = "holds" if all(is_needed(row) for row in evidence.minimality) else "fails"
    controls = (
        [c for c in (evidence.random_controls.size, evidence.random_controls.layer) if c]
        if evidence.random_controls
        else []
    )
    if controls:
        out["e"] = "holds" if all(beats_alternatives(control) for control in controls) else "fails"
    if stability is not None:
        out["f"] = "holds" if stability >= thresholds.MIN_JACCARD else "fails"
    return out


def decide_conditions(
    evidence: dict[EvidenceAblation, AblationEvidence | None], stability: float | None
) -> Conditions:
    """All conditions under both ablations."""
    judged = {
        ablation: decide_outcomes(evidence.get(ablation), stability)
        for ablation in EVIDENCE_ABLATIONS
    }
    return Conditions(
        **{
            c: OutcomeByAblation(resample=judged["resample"][c], mean=judged["mean"][c])
            for c in CONDITIONS
        }
    )


def decide_verdict(
    *,
    failed_gates: Sequence[str],
    n_heldout: int,
    size: int,
    evidence: dict[EvidenceAblation, AblationEvidence | None],
    conditions: Conditions,
    stability: float | None,
    cut_short: str | None,
    undefined: Sequence[str] = (),
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict and its reasons.

    Args:
        behaviour: the gates that do not hold, on either split.
        size: heads and MLPs in the circuit.
        cut_short: what the budget ended before, if it did.
        undefined: ablations under which f is null on discovery pairs, so that nothing could be searched for.
    """
    if failed_gates:
        return "no_behaviour", tuple(failed_gates)
    reasons = _explain(evidence, conditions, stability)
    blocking = []
    if n_heldout < thresholds.MIN_HELDOUT:
        blocking.append(f"{n_heldout} held-out pairs; {thresholds.MIN_HELDOUT} are needed")
    blocking += [
        f"f is null under {ablation}: ablating everything does not lower the metric reliably"
        for ablation, found in evidence.items()
        if found is not None and found.faithfulness is None
    ]
    blocking += [
        f"f is null under {a} on discovery pairs: ablating everything does not lower the metric reliably"
        for a in undefined
    ]
    if cut_short:
        blocking.append(f"the budget ended before {cut_short}")
    if blocking:
        return "inconclusive", (*blocking, *reasons)
    if size == 0:
        return "rejected", ("the circuit is empty", *reasons)
    failing = {
        a: {c for c in CONDITIONS if conditions.of(c).under(a) == "fails"}
        for a in EVIDENCE_ABLATIONS
    }
    if all({"a", "b"} <= failing[a] or "e" in failing[a] for a in EVIDENCE_ABLATIONS):
        return "rejected", reasons
    outcomes = {conditions.of(c).under(a) for c in CONDITIONS for a in EVIDENCE_ABLATIONS}
    if outcomes == {"holds"}:
        return "verified", reasons
    if "fails" not in outcomes and "undecided" in outcomes:
        return "inconclusive", reasons
    return "partial", reasons


def explain_repeated_looks(looks: int | None) -> tuple[str, ...]:
    """The reason that is added where other circuits have looked at the held-out pairs too; it changes no verdict."""
    if looks is None or looks < 2:
        return ()
    return (
        f"these held-out pairs have been looked at with {looks} circuits: draw fresh pairs (--seed)",
    )


def _explain(
    evidence: dict[EvidenceAblation, AblationEvidence | None],
    conditions: Conditions,
    stability: float | None,
) -> tuple[str, ...]:
    said, not_run = [], []
    for condition in CONDITIONS:
        outcomes = {
            ablation: conditions.of(condition).under(ablation) for ablation in EVIDENCE_ABLATIONS
        }
        for ablation, outcome in outcomes.items():
            if outcome in ("fails", "undecided"):
                said.append(
                    f"({condition}) {CONDITION_MEANINGS[condition]}, {ablation}: {outcome}{_numbers(condition, evidence.get(ablation), stability)}"
                )
        if missing := [ablation for ablation, outcome in outcomes.items() if outcome == "not_run"]:
            not_run.append(
                f"({condition}) {CONDITION_MEANINGS[condition]}"
                + (f" under {missing[0]}" if len(missing) == 1 else "")
            )
    if not_run:
        said.append(f"not run: {', '.join(not_run)}")
    for ablation, found in evidence.items():
        controls = found.random_controls if found else None
        for name in ("size", "layer"):
            if controls is not None and getattr(controls, name) is None:
                said.append(
                    f"(e) {ablation}: there is no other {name}-matched circuit, so that control is null"
                )
    return tuple(dict.fromkeys(said))


def _numbers(condition: Condition, found: AblationEvidence | None, stability: float | None) -> str:
    if condition == "f" and stability is not None:
        return f" (mean Jaccard {stability:.2f}, needed {thresholds.MIN_JACCARD})"
    if found is None:
        return ""
    if condition in "ab":
        score, band = (
            (found.faithfulness, thresholds.FAITHFULNESS_BAND)
            if condition == "a"
            else (found.knockout, thresholds.KNOCKOUT_BAND)
        )
        name = "f(C)" if condition == "a" else "f(U∖C)"
        return (
            f" ({name} = {score.value:.3f} [{score.low:.3f}, {score.high:.3f}], bounds {band[0]} to {band[1]})"
            if score
            else ""
        )
    if condition == "c" and found.completeness:
        c = found.completeness
        parts = (
            [f"without {c.node_in} the gap is {c.max_gap_in:.3f}"]
            if (c.max_gap_in or 0) > thresholds.MAX_GAP_IN
            else []
        )
        parts += (
            [f"with {c.node_out} f changes by {c.max_gap_out:.3f}"]
            if (c.max_gap_out or 0) > thresholds.MAX_GAP_OUT
            else []
        )
        return f" ({'; '.join(parts)})"
    if condition == "d" and found.minimality is not None:
        weak = [
            f"{row.node} drop {row.drop:.3f}, Holm p {row.p_holm:.3g}"
            for row in found.minimality
            if not is_needed(row)
        ]
        return f" ({'; '.join(weak)})"
    if condition == "e" and found.random_controls:
        named = (("size", found.random_controls.size), ("layer", found.random_controls.layer))
        return f" ({'; '.join(f'{n}-matched: {c.as_good} of {c.n} as good, p {c.p:.3f}' for n, c in named if c and not beats_alternatives(c))})"
    return ""
