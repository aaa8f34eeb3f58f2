"""The verdict of a state: from what was measured on held-out pairs, and from (f) where that was run."""

from __future__ import annotations

from discovery.agent.state import State
from discovery.evaluation import thresholds
from discovery.evaluation.verdict import decide_conditions, decide_verdict, explain_repeated_looks
from discovery.graph import EVIDENCE_ABLATIONS
from discovery.graph.base import Json


def add_verdict(state: State) -> State:
    """With the conditions, the verdict and its reasons."""
    held, own = state.evaluation.heldout, state.evaluation.discovery
    if held is None or own is None:
        raise ValueError("nothing was measured on held-out pairs")
    evidence = {ablation: held.ablations.under(ablation) for ablation in EVIDENCE_ABLATIONS}
    found = {ablation: own.ablations.under(ablation) for ablation in EVIDENCE_ABLATIONS}
    conditions = decide_conditions(evidence, state.stability)
    verdict, reasons = decide_verdict(
        failed_gates=(),
        n_heldout=held.n,
        size=len(state.circuit),
        evidence=evidence,
        conditions=conditions,
        stability=state.stability,
        cut_short=state.cut_short,
        undefined=[
            ablation
            for ablation, alone in found.items()
            if alone is not None and alone.faithfulness is None
        ],
    )
    if state.cut_searches and state.stability is None:
        reasons = (
            *reasons,
            f"(f) {state.cut_searches} of {thresholds.STABILITY_RESAMPLES} repeated searches ended where their share of the work was spent, "
            "and they could decide it",
        )
    reasons += explain_repeated_looks(state.evaluation.heldout_looks)
    tests = dict(state.evaluation.tests)
    if state.stability is not None or state.cut_searches:
        tests["stability"] = _stability_record(state)
    evaluation = state.evaluation.model_copy(update={"conditions": conditions, "tests": tests})
    return state.with_changes(evaluation=evaluation, verdict=verdict, reasons=reasons)


def _stability_record(state: State) -> dict[str, Json]:
    """Condition (f) as recorded: how often the searches that ended chose each node, and how many were cut.

    Where some were, the mean is a bound that is enough to judge by, or None where they could decide.
    """
    return {
        "mean_jaccard": state.stability,
        "resamples": thresholds.STABILITY_RESAMPLES,
        "cut_searches": state.cut_searches,
        "inclusion": dict(state.inclusion),
    }
