"""Stage 7: the circuit is frozen, and the held-out pairs are looked at once."""

from __future__ import annotations

import numpy as np

from discovery.agent.context import RunContext
from discovery.agent.stages.verdict import add_verdict
from discovery.agent.state import State
from discovery.evaluation import (
    choose_contexts,
    circuit_key,
    heldout_key,
    integrate_curves,
    measure_conditions,
    thresholds,
)
from discovery.graph import Evaluation, EvidenceByAblation
from discovery.graph.base import Json
from discovery.methods.statistics import max_statistic_test
from discovery.store import record_heldout_look


def validate(state: State, context: RunContext) -> State:
    """Conditions (a) to (e) on held-out pairs; on discovery pairs (a) and (b), for comparison."""
    search, bench, circuit = (
        context.evaluator("discovery"),
        context.evaluator("heldout"),
        state.circuit_nodes,
    )
    looks = record_heldout_look(
        context.run.path.parent, heldout_key(context.model, context.task), circuit_key(circuit)
    )
    own = search.measure_circuit(circuit)
    judgement = measure_conditions(
        bench,
        circuit,
        lambda ablation: choose_contexts(search, circuit, ablation),
        state.ranked_nodes,
        context.seed,
    )
    held = judgement.evidence
    splits = {
        "discovery": state.splits["discovery"].model_copy(
            update={"ablations": EvidenceByAblation(**own)}
        ),
        "heldout": state.splits["heldout"].model_copy(
            update={"ablations": EvidenceByAblation(**held)}
        ),
    }
    evaluation = Evaluation(
        universe=context.universe,
        discovery=splits["discovery"],
        heldout=splits["heldout"],
        curve=state.curve,
        tests={**judgement.tests, **_supplementary_tests(state, context)},
        thresholds=thresholds.as_record(),
        heldout_looks=looks,
    )
    measured = {
        a: {
            "f(C)": e.faithfulness and e.faithfulness.value,
            "f(U\\C)": e.knockout and e.knockout.value,
        }
        for a, e in held.items()
    }
    state = add_verdict(
        state.with_changes(evaluation=evaluation, splits=splits, cut_short=judgement.cut_short)
    )
    return context.finish_stage(
        state, "validate", measured, f"before (f): {state.verdict}", "; ".join(state.reasons)
    )


def _supplementary_tests(state: State, context: RunContext) -> dict[str, Json]:
    """What is reported beside the conditions, of discovery pairs."""
    return {
        "areas": integrate_curves(state.curve, len(state.ranking)),
        "max_statistic": _count_significant_cells(context),
    }


def _count_significant_cells(context: RunContext) -> dict[str, Json]:
    """Of each sweep, how many cells differ from nothing, looking at all of them at once."""
    found: dict[str, Json] = {}
    for name in context.run.array_ids():
        arrays = context.run.load_arrays(name)
        if not {"values", "per_pair", "metric_clean", "metric_corrupted"} <= set(arrays):
            continue
        base = arrays["metric_clean" if name.endswith("-noising") else "metric_corrupted"]
        change = (
            arrays["per_pair"].reshape(len(base), -1).astype(float) - base.astype(float)[:, None]
        )
        p = max_statistic_test(change, seed=context.seed)
        found[name] = {
            "cells": int(np.isfinite(arrays["values"]).sum()),
            "significant": int((p <= thresholds.ALPHA).sum()),
        }
    return found
