"""Stage 5 ("validate"): the circuit is frozen, and the held-out pairs are looked at once."""

from __future__ import annotations

from collections.abc import Mapping

from discovery.agent.context import RunContext
from discovery.agent.stages.verdict import add_verdict
from discovery.agent.state import State
from discovery.evaluation import (
    ConditionMeasurements,
    PartialEvidence,
    circuit_key,
    heldout_key,
    integrate_curves,
    measure_conditions,
    thresholds,
)
from discovery.graph import AblationEvidence, Evaluation, EvidenceByAblation, SplitEvaluation
from discovery.store import record_heldout_look


def validate(state: State, context: RunContext) -> State:
    """Measure conditions (a) to (e) on held-out pairs.

    On discovery pairs f(C) and f(U∖C) are measured too, for comparison.
    """
    search = context.evaluator("discovery")
    heldout = context.evaluator("heldout")
    circuit = state.circuit_nodes
    looks = record_heldout_look(
        context.run.path.parent, heldout_key(context.model, context.task), circuit_key(circuit)
    )
    context.settle_reference(circuit)
    discovery_evidence = search.measure_circuit(circuit)
    contexts_on = search if context.rules == 1 else context.search_evaluator
    conditions = measure_conditions(
        heldout,
        contexts_on,
        circuit,
        state.ranked_nodes,
        context.seed,
        context.rules,
        on_condition=lambda condition: context.save_heldout_sets(state, condition),
    )
    splits = _add_evidence(state, discovery_evidence, conditions)
    evaluation = _build_evaluation(state, context, splits, conditions, looks)
    state = add_verdict(
        state.with_changes(evaluation=evaluation, splits=splits, cut_short=conditions.cut_short),
        context.rules,
    )
    return context.finish_stage(
        state,
        "validate",
        {ablation: _describe_scores(part) for ablation, part in conditions.evidence.items()},
        f"before (f): {state.verdict}",
        "; ".join(state.reasons),
    )


def _build_evaluation(
    state: State,
    context: RunContext,
    splits: Mapping[str, SplitEvaluation],
    conditions: ConditionMeasurements,
    looks: int,
) -> Evaluation:
    return Evaluation(
        universe=context.universe,
        discovery=splits["discovery"],
        heldout=splits["heldout"],
        curve=state.curve,
        tests={
            **conditions.tests,
            "areas": integrate_curves(state.curve, len(state.ranking)),
        },
        thresholds=thresholds.as_record(context.rules),
        heldout_looks=looks,
    )


def _add_evidence(
    state: State, discovery: PartialEvidence, heldout: ConditionMeasurements
) -> dict[str, SplitEvaluation]:
    """Return both splits with what was measured on them."""
    measured: Mapping[str, Mapping[str, object]] = {
        "discovery": {"ablations": EvidenceByAblation(**discovery)},
        "heldout": {
            "ablations": EvidenceByAblation(**heldout.evidence),
            "minimality": heldout.minimality,
        },
    }
    return {
        split: state.splits[split].model_copy(update=update) for split, update in measured.items()
    }


def _describe_scores(evidence: AblationEvidence) -> dict[str, float | None]:
    return {
        "f(C)": evidence.faithfulness.value if evidence.faithfulness else None,
        "f(U\\C)": evidence.knockout.value if evidence.knockout else None,
    }
