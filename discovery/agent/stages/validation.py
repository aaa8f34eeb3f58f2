"""Stage 7: the circuit is frozen, and the held-out pairs are looked at once."""

from __future__ import annotations

import numpy as np

from discovery.agent.context import Context
from discovery.agent.stages.verdict import judged
from discovery.agent.state import State
from discovery.evaluation import Evidence, areas, choose_contexts, circuit_key, heldout_key, judge_circuit, thresholds
from discovery.graph import EVIDENCE_ABLATIONS, Ablations, Evaluation
from discovery.graph.base import Json
from discovery.methods.statistics import max_statistic
from discovery.store import heldout_looks


def validate(state: State, context: Context) -> State:
    """Conditions (a) to (e) on held-out pairs; on discovery pairs (a) and (b), for comparison."""
    search, bench, circuit = context.bench("discovery"), context.bench("heldout"), state.nodes
    looks = heldout_looks(context.run.path.parent, heldout_key(context.model, context.task), circuit_key(circuit))
    own: Evidence = {ablation: search.f(ablation).evidence(circuit) for ablation in EVIDENCE_ABLATIONS}
    judgement = judge_circuit(bench, circuit, lambda ablation: choose_contexts(search, circuit, ablation), state.ranked, context.seed)
    held = judgement.evidence
    splits = {
        "discovery": state.splits["discovery"].model_copy(update={"ablations": Ablations(**own)}),
        "heldout": state.splits["heldout"].model_copy(update={"ablations": Ablations(**held)}),
    }
    evaluation = Evaluation(
        universe=context.universe,
        discovery=splits["discovery"],
        heldout=splits["heldout"],
        curve=state.curve,
        tests={**judgement.tests, **_beside(state, context)},
        thresholds=thresholds.as_record(),
        heldout_looks=looks,
    )
    measured = {a: {"f(C)": e.faithfulness and e.faithfulness.value, "f(U\\C)": e.knockout and e.knockout.value} for a, e in held.items()}
    state = judged(state.with_(evaluation=evaluation, splits=splits, cut_short=judgement.cut_short))
    return context.finish(state, "validate", measured, f"before (f): {state.verdict}", "; ".join(state.reasons))


def _beside(state: State, context: Context) -> dict[str, Json]:
    """What is reported beside the conditions, of discovery pairs."""
    return {"areas": areas(state.curve, len(state.ranking)), "max_statistic": _significant(context)}


def _significant(context: Context) -> dict[str, Json]:
    """Of each sweep, how many cells differ from nothing, looking at all of them at once."""
    found: dict[str, Json] = {}
    for name in context.run.array_ids():
        arrays = context.run.load_arrays(name)
        if not {"values", "per_pair", "metric_clean", "metric_corrupted"} <= set(arrays):
            continue
        base = arrays["metric_clean" if name.endswith("-noising") else "metric_corrupted"]
        change = arrays["per_pair"].reshape(len(base), -1).astype(float) - base.astype(float)[:, None]
        p = max_statistic(change, seed=context.seed)
        found[name] = {"cells": int(np.isfinite(arrays["values"]).sum()), "significant": int((p <= thresholds.ALPHA).sum())}
    return found
