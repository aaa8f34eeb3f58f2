"""The parts of a verdict that all versions of the rules share: outcomes and reasons in words."""

from __future__ import annotations

from discovery.evaluation import thresholds
from discovery.evaluation.alternatives import beats_alternatives
from discovery.evaluation.verdict.findings import EvidenceOrNone, Findings
from discovery.graph import Outcome, RandomControls, Score


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


def holds_if(is_met: bool) -> Outcome:
    """Return "holds" or "fails"."""
    return "holds" if is_met else "fails"


def decide_controls(controls: RandomControls | None) -> Outcome:
    """Decide condition (e); it is not run if there is no alternative of either kind."""
    if controls is None:
        return "not_run"
    measured = [control for control in (controls.size, controls.layer) if control is not None]
    if not measured:
        return "not_run"
    return holds_if(all(beats_alternatives(control) for control in measured))


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


def blocking_reasons(findings: Findings) -> list[str]:
    """Return why nothing can be concluded, if that is so."""
    reasons = []
    if findings.n_heldout < thresholds.MIN_HELDOUT:
        reasons.append(f"{findings.n_heldout} held-out pairs; {thresholds.MIN_HELDOUT} are needed")
    reasons += [
        f"f is null under {ablation}: ablating everything does not lower the metric reliably"
        for ablation, measured in findings.evidence.items()
        if measured is not None and measured.faithfulness is None
    ]
    reasons += [
        f"f is null under {ablation} on discovery pairs: "
        "ablating everything does not lower the metric reliably"
        for ablation in findings.undefined
    ]
    if findings.cut_short:
        reasons.append(f"the budget ended before {findings.cut_short}")
    elif findings.size and not findings.was_measured:
        reasons.append("not judged yet: the circuit was not measured on held-out pairs")
    return reasons


def name_missing_controls(evidence: EvidenceOrNone) -> list[str]:
    """Name each kind of alternative of which there is none."""
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


def format_score_numbers(name: str, score: Score | None, band: tuple[float, float]) -> str:
    """Return a value of f with its interval and bounds, in parentheses."""
    if score is None:
        return ""
    return (
        f" ({name} = {score.value:.3f} [{score.low:.3f}, {score.high:.3f}], "
        f"bounds {band[0]} to {band[1]})"
    )


def format_control_numbers(controls: RandomControls | None) -> str:
    """Return the comparisons of (e) that the circuit does not win, in parentheses."""
    if controls is None:
        return ""
    parts = [
        f"{kind}-matched: {control.as_good} of {control.n} as good, p {control.p:.3f}"
        for kind, control in (("size", controls.size), ("layer", controls.layer))
        if control is not None and not beats_alternatives(control)
    ]
    return f" ({'; '.join(parts)})"
