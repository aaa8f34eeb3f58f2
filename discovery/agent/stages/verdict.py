"""The verdict of a state, from what was measured on held-out pairs and, if it was run, from (f)."""

from __future__ import annotations

from collections.abc import Mapping

from discovery.agent.state import State
from discovery.evaluation import thresholds
from discovery.evaluation.verdict import Findings, explain_repeated_looks, judge
from discovery.graph import (
    EVIDENCE_ABLATIONS,
    RULES_VERSION,
    AblationEvidence,
    EvidenceAblation,
    RulesVersion,
    SplitEvaluation,
)
from discovery.graph.base import Json


def add_verdict(state: State, rules: RulesVersion = RULES_VERSION) -> State:
    """Return the state with its conditions, its verdict and its reasons.

    Args:
        state: the state, with what was measured on both splits.
        rules: the version of the rules that the run began under.
    """
    heldout = state.evaluation.heldout
    discovery = state.evaluation.discovery
    if heldout is None or discovery is None:
        raise ValueError("nothing was measured on held-out pairs")
    judgement = judge(collect_findings(state, discovery, heldout), rules)
    reasons = judgement.reasons
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
    evaluation = state.evaluation.model_copy(
        update={"conditions": judgement.conditions, "tests": tests}
    )
    return state.with_changes(evaluation=evaluation, verdict=judgement.verdict, reasons=reasons)


def collect_findings(
    state: State, discovery: SplitEvaluation, heldout: SplitEvaluation
) -> Findings:
    """Return what the verdict of a state rests on."""
    return Findings(
        n_heldout=heldout.n,
        size=len(state.circuit),
        evidence={a: heldout.ablations.under(a) for a in EVIDENCE_ABLATIONS},
        minimality=heldout.minimality,
        stability=state.stability,
        cut_short=state.cut_short,
        undefined=find_undefined({a: discovery.ablations.under(a) for a in EVIDENCE_ABLATIONS}),
    )


def find_undefined(
    evidence: Mapping[EvidenceAblation, AblationEvidence | None],
) -> list[EvidenceAblation]:
    """Return the ablations under which f is null."""
    return [a for a, own in evidence.items() if own is not None and own.faithfulness is None]


def _stability_record(state: State) -> dict[str, Json]:
    """Return condition (f) as the record holds it.

    `inclusion` counts only the searches that ended. If some were cut off, the mean that decides
    is a bound that suffices for a decision, or None if the searches that were cut off could decide
    it. That is `mean_weighted_jaccard` if it is there, else `mean_jaccard`.
    """
    means: dict[str, Json] = {"mean_jaccard": state.stability}
    if state.plain_jaccard is not None:
        means = {"mean_weighted_jaccard": state.stability, "mean_jaccard": state.plain_jaccard}
    return {
        **means,
        "resamples": thresholds.STABILITY_RESAMPLES,
        "cut_searches": state.cut_searches,
        "inclusion": dict(state.inclusion),
    }
