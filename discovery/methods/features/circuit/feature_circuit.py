"""Features beside the heads of a circuit record: found by attribution, verified by exact ablation, with the edges that hold.

Found on discovery pairs: the largest attributions of the exchange between clean and corrupted run (see `exchange`). Verified on
held-out pairs: a feature becomes a node where its exchange in the clean run moves the metric by at least 0.01 of m(clean) −
m(corrupted), the 95% interval of that leaves out 0, it is no chance find among the candidates (sign-flip max-statistic, p ≤ 0.05), and at
most 1 in 20 equal pushes along other features' directions does as much. Edges (see `edges`) are measured on discovery pairs; one is
kept where its interval leaves out 0 and it is large enough: out of a feature 0.01 of the metric or a tenth of the feature's own effect,
into one 0.05 of the feature's way from the clean to the corrupted run. Of a task without a split everything is measured on all pairs,
which a warning says.

Features never change a verdict: its conditions are about heads and MLPs. A feature that others back up moves nothing alone, and is not
found here.

    from discovery import add_features
    made = add_features(model, run.circuit, task, "saes/layer8", positions=["end"])
    made.circuit.features, made.candidates[0].why
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend
from discovery.engine import Meter
from discovery.engine.cost import MeasurementCost
from discovery.errors import MeasurementError
from discovery.features import SAE, open_sae
from discovery.graph import CircuitEdge, CircuitGraph
from discovery.methods.features.arguments import Positions, TaskLike, require_counts, resolve_task
from discovery.methods.features.circuit.candidates import (
    MIN_EFFECT_SHARE,
    Candidate,
    judge_candidates,
)
from discovery.methods.features.circuit.edges import FeatureEdgeEffect, measure_feature_edges
from discovery.methods.features.circuit.exchange import (
    AttributionRanking,
    ExchangeMeasurement,
    measure_exchange,
    rank_by_attribution,
)
from discovery.methods.features.circuit.record import (
    edge_record,
    feature_record,
    features_result_id,
    replace_features,
    sae_record,
)
from discovery.methods.features.circuit.split import SplitMeasurement, excludes_zero
from discovery.methods.features.reconstruction import Reconstruction, measure_reconstruction
from discovery.progress import ProgressCallback
from discovery.sites import FeatureSite, MetricName
from discovery.tasks.task import Task

MIN_EDGE_SHARE_OF_FEATURE = (
    0.1  # of a feature's own effect, for an edge out of it that is below LEAST
)
MIN_ACTIVATION_CHANGE = (
    0.05  # of a feature's way from the clean to the corrupted run, for an edge into it
)


@dataclass(frozen=True)
class FeatureCircuit:
    """A circuit record with features, and everything behind it.

    Attributes:
        circuit: the record. candidates: the first first. edges: all that were measured; those that hold are in the record.
        result: the id by which the record names `arrays` as evidence: raw numbers of each pair.
    """

    circuit: CircuitGraph
    candidates: tuple[Candidate, ...]
    edges: tuple[CircuitEdge, ...]
    reconstruction: Reconstruction
    warnings: tuple[str, ...]
    result_id: str
    arrays: dict[str, Float[Tensor, "pair _"]]
    cost: MeasurementCost


def add_features(
    model: Backend,
    circuit: CircuitGraph,
    task: TaskLike,
    sae: SAE | str | Path | None = None,
    *,
    positions: Positions = None,
    k: int = 16,
    steps: int = 5,
    controls: int = 19,
    top_tokens: int = 5,
    seed: int = 0,
    metric: MetricName | None = None,
    memory: int | None = None,
    progress: ProgressCallback | None = None,
) -> FeatureCircuit:
    """Put the features of a dictionary that hold beside a circuit's heads and MLPs.

    Args:
        circuit: a record; features of another dictionary of the same site are replaced.
        task: the record's own, with its split; the name of a built-in task, or the path of a task file, stands for as many pairs of it
            as `discover` takes.
        sae: as in `sae_top_features`; of the residual stream, attn_out, mlp_out or heads' outputs.
        positions: as in `sae_top_features`.
        k: how many candidates. steps: of the attribution; 1 is gradient × activation.
        controls: draws of the shuffled-decoder control; 0 leaves it out.
        metric: the record's where None, else the task's.

    Raises:
        FeatureError: the SAE cannot be loaded or does not fit the model.
        MeasurementError: a record of no behaviour or of another model, a dictionary of q, k or v, unknown choices, or sides that do not
            differ.
    """
    began = time.monotonic()
    require_counts(k=(k, 1), steps=(steps, 1), controls=(controls, 0), top_tokens=(top_tokens, 0))
    sae = open_sae(sae, model)
    _check(model, circuit, sae)
    task = resolve_task(task, model, seed, pairs=None)
    meter = Meter(progress=progress)
    first, last = _measure_splits(
        model,
        task,
        sae,
        positions,
        metric=metric or circuit.task.metric,
        memory=memory,
        meter=meter,
        seed=seed,
    )
    found = rank_by_attribution(first.engine, sae, first.places, steps, k)
    whole, _ = measure_reconstruction(
        last.engine, sae, last.places, last.engine.baseline("corrupted"), last.resamples
    )
    measured = (
        measure_exchange(last.engine, sae, last.places, found.features, controls, seed, top_tokens)
        if found.features
        else None
    )
    candidates = judge_candidates(sae, found, measured, first, last) if measured else ()
    nodes = (
        [
            feature_record(one, measured, i, sae, last, positions)
            for i, one in enumerate(candidates)
            if not one.why
        ]
        if measured
        else []
    )
    numbers = [node.feature.index for node in nodes if node.feature]
    told = (
        measure_feature_edges(first.engine, sae, first.places, numbers, circuit.members)
        if numbers
        else []
    )
    edges = [edge_record(edge, first, sae) for edge in told]
    warnings = tuple(_warnings(whole, sae, circuit, task, len(last), first is last, controls))
    known = sae_record(sae, positions, (first, last), whole, candidates, warnings)
    own = {str(one.node): abs(one.noising.mean or 0.0) for one in candidates}
    kept = [edge for edge, raw in zip(edges, told, strict=True) if _edge_holds(edge, raw, own)]
    made = replace_features(circuit, known, nodes, kept)
    cost = MeasurementCost(meter.spent, time.monotonic() - began)
    return FeatureCircuit(
        made,
        candidates,
        tuple(edges),
        whole,
        warnings,
        features_result_id(sae),
        _arrays(found, measured, told),
        cost,
    )


def _check(model: Backend, circuit: CircuitGraph, sae: SAE) -> None:
    if circuit.verdict == "no_behaviour":
        raise MeasurementError(
            "The record's verdict is no_behaviour: there is nothing that features could carry.",
            "Use another task.",
        )
    if circuit.model.fingerprint and circuit.model.fingerprint != model.info.fingerprint:
        raise MeasurementError(
            f"The record's model has other weights ({circuit.model.fingerprint[:12]}…; this one's are {model.info.fingerprint[:12]}…).",
            f"Load the model {circuit.model.name!r} that it was made with.",
        )
    for site in (sae.reads, sae.writes):
        if site.kind not in get_args(FeatureSite):
            raise MeasurementError(
                f"The SAE is of {site.kind}, which is no part of the residual stream, so path patching knows no edges of its features.",
                f"Use an SAE of {', '.join(get_args(FeatureSite))}.",
            )


def _measure_splits(
    model: Backend, task: Task, sae: SAE, positions: Positions, *, memory: int | None, **how: Any
) -> tuple[SplitMeasurement, SplitMeasurement]:
    """The pairs to find on and to verify on; the same where the task is not split."""
    if not task.discovery.pairs or not task.heldout.pairs:
        whole = SplitMeasurement.of(model, task, sae, positions, memory=memory, **how)
        return whole, whole
    room = memory and memory // 2  # both keep what they cached
    first, last = (
        SplitMeasurement.of(model, half, sae, positions, memory=room, **how)
        for half in (task.discovery, task.heldout)
    )
    return first, last


def _edge_holds(edge: CircuitEdge, told: FeatureEdgeEffect, own: Mapping[str, float]) -> bool:
    """Whether an edge is one; `own` is each feature's effect."""
    out = told.activation_change is None
    found, least = (
        (edge.effect, min(MIN_EFFECT_SHARE, MIN_EDGE_SHARE_OF_FEATURE * own[edge.source]))
        if out
        else (edge.activation, MIN_ACTIVATION_CHANGE)
    )
    return found is not None and abs(found.mean or 0.0) >= least and excludes_zero(found)


def _warnings(
    whole: Reconstruction,
    sae: SAE,
    circuit: CircuitGraph,
    task: Task,
    n: int,
    same: bool,
    controls: int,
) -> Sequence[str]:
    warnings = [
        f"POOR RECONSTRUCTION: {fault}; its features explain little here" for fault in whole.poor
    ]
    warnings += [*whole.notes, *sae.warnings]
    if same:
        warnings.append(
            f"the task is not split: the features were found and verified on the same {n} pairs"
        )
    if circuit.task.fingerprint and circuit.task.fingerprint != task.fingerprint:
        warnings.append("the features were measured on other pairs than the circuit")
    if not controls:
        warnings.append(
            "no push along other features' directions was drawn: nothing says that another would not do as much"
        )
    return warnings


def _arrays(
    found: AttributionRanking,
    measured: ExchangeMeasurement | None,
    told: Sequence[FeatureEdgeEffect],
) -> dict[str, Float[Tensor, "pair _"]]:
    """The raw numbers of each pair."""
    if measured is None:
        return {}
    arrays = {
        "attribution": found.per_pair,
        "noised": measured.noised,
        "denoised": measured.denoised,
        "removed": measured.removed,
    }
    arrays["activation"] = measured.activation
    if told:
        arrays["edges"] = torch.stack([edge.whole for edge in told], 1)
        arrays["edge_activation"] = torch.stack(
            [
                torch.full_like(e.whole, torch.nan)
                if e.activation_change is None
                else e.activation_change
                for e in told
            ],
            1,
        )
    return arrays
