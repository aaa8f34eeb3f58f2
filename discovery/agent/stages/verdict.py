"""The verdict of a state, from what was measured on held-out pairs and, if it was run, from (f)."""

from __future__ import annotations

from collections.abc import Mapping

from discovery.agent.state import State
from discovery.evaluation import thresholds
from discovery.evaluation.verdict import decide_conditions, decide_verdict, explain_repeated_looks
from discovery.graph import (
    EVIDENCE_ABLATIONS,
    AblationEvidence,
    Conditions,
    EvidenceAblation,
    Verdict,
)
from discovery.graph.base import Json


def decide_from_evidence(
    *,
    discovery: Mapping[EvidenceAblation, AblationEvidence | None],
    heldout: Mapping[EvidenceAblation, AblationEvidence | None],
    n_heldout: int,
    size: int,
    stability: float | None,
    cut_short: str | None,
) -> tuple[Conditions, Verdict, tuple[str, ...]]:
    """Decide the conditions and the verdict of a circuit.

    Args:
        discovery: What was measured on discovery pairs, under each ablation.
        heldout: What was measured on held-out pairs, under each ablation.
        n_heldout: The number of held-out pairs.
        size: The number of heads and MLPs in the circuit.
        stability: The mean Jaccard of (f); None if (f) was not run, or cannot be decided.
        cut_short: What the budget ended before, if it ended early.

    Returns:
        The conditions, the verdict and the reasons for it.
    """
    evidence = {ablation: heldout.get(ablation) for ablation in EVIDENCE_ABLATIONS}
    conditions = decide_conditions(evidence, stability)
    verdict, reasons = decide_verdict(
        failed_gates=(),
        n_heldout=n_heldout,
        size=size,
        evidence=evidence,
        conditions=conditions,
        stability=stability,
        cut_short=cut_short,
        undefined=[
            ablation
            for ablation, own in discovery.items()
            if own is not None and own.faithfulness is None
        ],
    )
    return conditions, verdict, reasons


def add_verdict(state: State) -> State:
    """Return the state with its conditions, its verdict and its reasons."""
    heldout = state.evaluation.heldout
    discovery = state.evaluation.discovery
    if heldout is None or discovery is None:
        raise ValueError("nothing was measured on held-out pairs")
    conditions, verdict, reasons = decide_from_evidence(
        discovery={a: discovery.ablations.under(a) for a in EVIDENCE_ABLATIONS},
        heldout={a: heldout.ablations.under(a) for a in EVIDENCE_ABLATIONS},
        n_heldout=heldout.n,
        size=len(state.circuit),
        stability=state.stability,
        cut_short=state.cut_short,
    )
    if state.cut_searches and state.stability is None:
        reasons = (
            *reasons,
            f"(f) {state.cut_searches} of {thresholds.STABILITY_RESAMPLES} repeated searches ended "
            "when their share of the work was spent, and they could decide it",
        )
    reasons += explain_repeated_looks(state.evaluation.heldout_looks)
    tests = dict(state.evaluation.tests)
    if state.stability is not None or state.cut_searches:
        tests["stability"] = _stability_record(state)
    evaluation = state.evaluation.model_copy(update={"conditions": conditions, "tests": tests})
    return state.with_changes(evaluation=evaluation, verdict=verdict, reasons=reasons)


def _stability_record(state: State) -> dict[str, Json]:
    """Return condition (f) as the record holds it.

    `inclusion` counts only the searches that ended. If some were cut off, `mean_jaccard` is a bound
    that suffices for a decision, or None if the searches that were cut off could decide it.
    """
    return {
        "mean_jaccard": state.stability,
        "resamples": thresholds.STABILITY_RESAMPLES,
        "cut_searches": state.cut_searches,
        "inclusion": dict(state.inclusion),
    }
