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
from discovery.engine import Meter, Progress
from discovery.engine.cost import Cost
from discovery.errors import MeasurementError
from discovery.features import SAE, open_sae
from discovery.graph import CircuitEdge, CircuitGraph
from discovery.methods.features.arguments import Positions, Tasked, named_task, require_counts
from discovery.methods.features.circuit.candidates import LEAST, Candidate, judged
from discovery.methods.features.circuit.edges import Told, edges_of
from discovery.methods.features.circuit.exchange import Exchanged, Found, exchange, find
from discovery.methods.features.circuit.record import dictionary_entry, edge_entry, node_entry, result_of, with_features
from discovery.methods.features.circuit.split import Half, leaves_out_zero
from discovery.methods.features.reconstruction import Reconstruction, reconstruct
from discovery.sites import FeatureSite, MetricName
from discovery.tasks.task import Task

LEAST_PART = 0.1  # of a feature's own effect, for an edge out of it that is below LEAST
LEAST_CHANGE = 0.05  # of a feature's way from the clean to the corrupted run, for an edge into it


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
    result: str
    arrays: dict[str, Float[Tensor, "pair _"]]
    cost: Cost


def add_features(
    model: Backend,
    circuit: CircuitGraph,
    task: Tasked,
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
    progress: Progress | None = None,
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
    task = named_task(task, model, seed, pairs=None)
    meter = Meter(progress=progress)
    first, last = _halves(model, task, sae, positions, metric=metric or circuit.task.metric, memory=memory, meter=meter, seed=seed)
    found = find(first.engine, sae, first.places, steps, k)
    whole, _ = reconstruct(last.engine, sae, last.places, last.engine.baseline("corrupted"), last.resamples)
    measured = exchange(last.engine, sae, last.places, found.features, controls, seed, top_tokens) if found.features else None
    candidates = judged(sae, found, measured, first, last) if measured else ()
    nodes = [node_entry(one, measured, i, sae, last, positions) for i, one in enumerate(candidates) if not one.why] if measured else []
    numbers = [node.feature.index for node in nodes if node.feature]
    told = edges_of(first.engine, sae, first.places, numbers, circuit.members) if numbers else []
    edges = [edge_entry(edge, first, sae) for edge in told]
    warnings = tuple(_warnings(whole, sae, circuit, task, len(last), first is last, controls))
    known = dictionary_entry(sae, positions, (first, last), whole, candidates, warnings)
    own = {str(one.node): abs(one.noising.mean or 0.0) for one in candidates}
    kept = [edge for edge, raw in zip(edges, told, strict=True) if _holds(edge, raw, own)]
    made = with_features(circuit, known, nodes, kept)
    cost = Cost(meter.spent, time.monotonic() - began)
    return FeatureCircuit(made, candidates, tuple(edges), whole, warnings, result_of(sae), _arrays(found, measured, told), cost)


def _check(model: Backend, circuit: CircuitGraph, sae: SAE) -> None:
    if circuit.verdict == "no_behaviour":
        raise MeasurementError("The record's verdict is no_behaviour: there is nothing that features could carry.", "Use another task.")
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


def _halves(model: Backend, task: Task, sae: SAE, positions: Positions, *, memory: int | None, **how: Any) -> tuple[Half, Half]:
    """The pairs to find on and to verify on; the same where the task is not split."""
    if not task.discovery.pairs or not task.heldout.pairs:
        whole = Half.of(model, task, sae, positions, memory=memory, **how)
        return whole, whole
    room = memory and memory // 2  # both keep what they cached
    first, last = (Half.of(model, half, sae, positions, memory=room, **how) for half in (task.discovery, task.heldout))
    return first, last


def _holds(edge: CircuitEdge, told: Told, own: Mapping[str, float]) -> bool:
    """Whether an edge is one; `own` is each feature's effect."""
    out = told.activation is None
    found, least = (edge.effect, min(LEAST, LEAST_PART * own[edge.source])) if out else (edge.activation, LEAST_CHANGE)
    return found is not None and abs(found.mean or 0.0) >= least and leaves_out_zero(found)


def _warnings(whole: Reconstruction, sae: SAE, circuit: CircuitGraph, task: Task, n: int, same: bool, controls: int) -> Sequence[str]:
    warnings = [f"POOR RECONSTRUCTION: {fault}; its features explain little here" for fault in whole.poor]
    warnings += [*whole.notes, *sae.warnings]
    if same:
        warnings.append(f"the task is not split: the features were found and verified on the same {n} pairs")
    if circuit.task.fingerprint and circuit.task.fingerprint != task.fingerprint:
        warnings.append("the features were measured on other pairs than the circuit")
    if not controls:
        warnings.append("no push along other features' directions was drawn: nothing says that another would not do as much")
    return warnings


def _arrays(found: Found, measured: Exchanged | None, told: Sequence[Told]) -> dict[str, Float[Tensor, "pair _"]]:
    """The raw numbers of each pair."""
    if measured is None:
        return {}
    arrays = {"attribution": found.per_pair, "noised": measured.noised, "denoised": measured.denoised, "removed": measured.removed}
    arrays["activation"] = measured.activation
    if told:
        arrays["edges"] = torch.stack([edge.whole for edge in told], 1)
        arrays["edge_activation"] = torch.stack(
            [torch.full_like(e.whole, torch.nan) if e.activation is None else e.activation for e in told], 1
        )
    return arrays
