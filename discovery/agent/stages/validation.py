"""Stage 7 ("validate"): the circuit is frozen, and the held-out pairs are looked at once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

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
from discovery.graph.base import Json
from discovery.methods.statistics import max_statistic_test
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
    conditions = measure_conditions(
        heldout, search, circuit, state.ranked_nodes, context.seed, context.rules
    )
    splits = _add_evidence(state, discovery_evidence, conditions)
    evaluation = Evaluation(
        universe=context.universe,
        discovery=splits["discovery"],
        heldout=splits["heldout"],
        curve=state.curve,
        tests={**conditions.tests, **_supplementary_tests(state, context)},
        thresholds=thresholds.as_record(context.rules),
        heldout_looks=looks,
    )
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


def _supplementary_tests(state: State, context: RunContext) -> dict[str, Json]:
    """Return the tests on discovery pairs that are reported beside the conditions."""
    return {
        "areas": integrate_curves(state.curve, len(state.ranking)),
        "max_statistic": _count_significant_cells(context),
    }


def _count_significant_cells(context: RunContext) -> dict[str, Json]:
    """Return for each sweep how many cells have an effect, corrected for looking at all of them."""
    counts: dict[str, Json] = {}
    for result_id in context.run.array_ids():
        arrays = context.run.load_arrays(result_id)
        if not {"values", "per_pair", "metric_clean", "metric_corrupted"} <= set(arrays):
            continue  # not a sweep
        direction = result_id.rpartition("-")[2]
        base_name = "metric_clean" if direction == "noising" else "metric_corrupted"
        base = arrays[base_name].astype(float)
        patched = arrays["per_pair"].reshape(len(base), -1).astype(float)
        p_values = max_statistic_test(patched - base[:, None], seed=context.seed)
        counts[result_id] = {
            "cells": int(np.isfinite(arrays["values"]).sum()),
            "significant": int((p_values <= thresholds.ALPHA).sum()),
        }
    return counts
