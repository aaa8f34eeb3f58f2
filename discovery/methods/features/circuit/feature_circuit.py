"""Features beside the heads of a circuit record, with the edges that hold.

Candidates are found on discovery pairs: the features whose exchange between the clean and the
corrupted run has the largest attribution (see `exchange`). They are verified on held-out pairs. A
feature becomes a node if

- its exchange in the clean run moves the metric by at least 0.01 of m(clean) − m(corrupted),
- the 95% interval of that effect excludes 0,
- chance rarely gives such an effect among the candidates (sign-flip max-statistic, p ≤ 0.05), and
- at most 1 in 20 equal pushes along other features' directions does as much.

Edges (see `edges`) are measured on discovery pairs. An edge is kept if its interval excludes 0 and
it is large enough: out of a feature, 0.01 of the metric or a tenth of the feature's own effect;
into a feature, 0.05 of the difference between the feature's clean and corrupted activation.

If a task is not split, everything is measured on all pairs, and a warning says so.

Features never change a verdict, because its conditions are about heads and MLPs. A feature that has
backups moves nothing when it is exchanged alone, so it is not found here.

    from discovery import add_features
    result = add_features(model, run.circuit, task, "saes/layer8", positions=["end"])
    result.circuit.features, result.candidates[0].why
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend
from discovery.engine import Meter
from discovery.engine.cost import MeasurementCost
from discovery.errors import MeasurementError
from discovery.features import SAE, open_sae
from discovery.graph import CircuitEdge, CircuitGraph, CircuitNode
from discovery.methods.arguments import Positions, require_counts
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
from discovery.methods.features.splice import SplicedTask
from discovery.methods.subject import TaskLike, resolve_task
from discovery.progress import ProgressCallback
from discovery.sites import FeatureSite, MetricName
from discovery.tasks.task import Task

# An edge out of a feature that is below MIN_EFFECT_SHARE must be this share of the feature's
# effect.
MIN_EDGE_SHARE_OF_FEATURE = 0.1

# An edge into a feature must change its activation by this share of the difference between the
# clean and the corrupted run.
MIN_ACTIVATION_CHANGE = 0.05


@dataclass(frozen=True, kw_only=True)
class FeatureCircuit:
    """A circuit record with features, and the measurements behind it.

    Attributes:
        circuit: the record.
        candidates: the candidates in the order of attribution, whether they hold or not.
        edges: all edges that were measured; those that hold are in the record.
        reconstruction: how well the SAE reconstructs the held-out pairs' activations.
        warnings: what to know first; a poor reconstruction stands at the beginning.
        result_id: the id by which the record names `arrays` as evidence.
        arrays: the raw numbers of each pair, by name.
        cost: the work done.
    """

    circuit: CircuitGraph
    candidates: tuple[Candidate, ...]
    edges: tuple[CircuitEdge, ...]
    reconstruction: Reconstruction
    warnings: tuple[str, ...]
    result_id: str
    arrays: Mapping[str, Float[Tensor, "pair _"]]
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
    """Find the features of an SAE that hold, and put them beside a circuit's heads and MLPs.

    Args:
        circuit: a circuit record. Features of another SAE of the same site are replaced.
        task: the record's own task, with its split. The name of a built-in task or the path of a
            task file stands for as many of its pairs as `discover` uses.
        sae: as in `sae_top_features`. Its site must be in the residual stream, attn_out, mlp_out or
            the heads' values z.
        positions: as in `sae_top_features`.
        k: how many candidates to verify.
        steps: steps of the attribution; 1 is gradient × activation.
        controls: draws of the shuffled-decoder control for each candidate; 0 leaves it out.
        top_tokens: how many promoted and suppressed tokens to find.
        metric: the default is the record's own metric.

    Raises:
        FeatureError: if the SAE cannot be loaded or does not fit the model.
        MeasurementError: if the record belongs to another model or has no behaviour, if the SAE
            reads q, k or v, for unknown choices, and if the sides of the pairs do not differ.
    """
    started = time.monotonic()
    require_counts(k=(k, 1), steps=(steps, 1), controls=(controls, 0), top_tokens=(top_tokens, 0))
    sae = open_sae(sae, model)
    _check_fit(model, circuit, sae)
    task = resolve_task(task, model, seed, pairs=None)
    meter = Meter(progress=progress)
    metric = metric or circuit.task.metric
    discovery, heldout = _measure_splits(
        model, task, sae, positions, metric=metric, memory=memory, meter=meter, seed=seed
    )
    ranking = rank_by_attribution(discovery.spliced, steps, k)
    reconstruction, _ = measure_reconstruction(
        heldout.spliced, heldout.engine.baseline("corrupted")
    )
    exchange = None
    candidates: tuple[Candidate, ...] = ()
    effects: Sequence[FeatureEdgeEffect] = ()
    if ranking.features:
        exchange = measure_exchange(
            heldout.spliced, ranking.features, draws=controls, seed=seed, top=top_tokens
        )
        candidates = judge_candidates(sae, ranking, exchange, discovery, heldout)
        holding = [candidate.node.feature or 0 for candidate in candidates if not candidate.why]
        if holding:
            effects = measure_feature_edges(discovery.spliced, holding, circuit.members)
    warnings = _warnings(reconstruction, sae, circuit, task, (discovery, heldout), controls)
    facts = sae_record(sae, positions, (discovery, heldout), reconstruction, candidates, warnings)
    edges = tuple(edge_record(effect, discovery, sae) for effect in effects)
    nodes = _nodes_that_hold(candidates, exchange, sae, heldout, positions)
    return FeatureCircuit(
        circuit=replace_features(circuit, facts, nodes, _edges_that_hold(edges, candidates)),
        candidates=candidates,
        edges=edges,
        reconstruction=reconstruction,
        warnings=warnings,
        result_id=features_result_id(sae),
        arrays=_arrays(ranking, exchange, effects),
        cost=MeasurementCost(meter.spent, time.monotonic() - started),
    )


def _check_fit(model: Backend, circuit: CircuitGraph, sae: SAE) -> None:
    """Check that features of this SAE can stand in this record."""
    if circuit.verdict == "no_behaviour":
        raise MeasurementError(
            "The record's verdict is no_behaviour: there is nothing that features could carry.",
            "Use another task.",
        )
    if circuit.model.fingerprint and circuit.model.fingerprint != model.info.fingerprint:
        raise MeasurementError(
            f"The record's model has other weights ({circuit.model.fingerprint[:12]}…; this one's "
            f"are {model.info.fingerprint[:12]}…).",
            f"Load the model {circuit.model.name!r}, with which the record was made.",
        )
    for site in (sae.reads, sae.writes):
        if site.kind not in get_args(FeatureSite):
            raise MeasurementError(
                f"The SAE's site is {site.kind}, which is no part of the residual stream, so path "
                "patching cannot measure edges of its features.",
                f"Use an SAE of {', '.join(get_args(FeatureSite))}.",
            )


def _measure_splits(
    model: Backend,
    task: Task,
    sae: SAE,
    positions: Positions,
    *,
    metric: MetricName | None,
    memory: int | None,
    meter: Meter,
    seed: int,
) -> tuple[SplitMeasurement, SplitMeasurement]:
    """Return the discovery and the held-out pairs; they are the same if the task is not split."""

    def measure(pairs: Task, limit: int | None) -> SplitMeasurement:
        return SplitMeasurement.of(
            SplicedTask.of(
                model, pairs, sae, positions, meter, metric=metric, memory=limit, seed=seed
            )
        )

    if not task.discovery.pairs or not task.heldout.pairs:
        whole = measure(task, memory)
        return whole, whole
    half = memory and memory // 2  # both splits keep what they cached
    return measure(task.discovery, half), measure(task.heldout, half)


def _nodes_that_hold(
    candidates: Sequence[Candidate],
    exchange: ExchangeMeasurement | None,
    sae: SAE,
    heldout: SplitMeasurement,
    positions: Positions,
) -> list[CircuitNode]:
    if exchange is None:
        return []
    return [
        feature_record(candidate, exchange, i, sae, heldout, positions)
        for i, candidate in enumerate(candidates)
        if not candidate.why
    ]


def _edges_that_hold(
    edges: Sequence[CircuitEdge], candidates: Sequence[Candidate]
) -> list[CircuitEdge]:
    effects = {str(candidate.node): abs(candidate.noising.mean or 0.0) for candidate in candidates}
    return [edge for edge in edges if _edge_holds(edge, effects)]


def _edge_holds(edge: CircuitEdge, feature_effects: Mapping[str, float]) -> bool:
    """Return whether an edge is large enough, and its interval excludes 0.

    Args:
        feature_effects: the size of each feature's own effect, by its node.
    """
    if edge.source in feature_effects:
        effect = edge.effect
        own = feature_effects[edge.source]
        minimum = min(MIN_EFFECT_SHARE, MIN_EDGE_SHARE_OF_FEATURE * own)
    else:
        effect = edge.activation
        minimum = MIN_ACTIVATION_CHANGE
    if effect is None:
        return False
    return abs(effect.mean or 0.0) >= minimum and excludes_zero(effect)


def _warnings(
    reconstruction: Reconstruction,
    sae: SAE,
    circuit: CircuitGraph,
    task: Task,
    splits: tuple[SplitMeasurement, SplitMeasurement],
    controls: int,
) -> tuple[str, ...]:
    discovery, heldout = splits
    warnings = [*reconstruction.warnings, *sae.warnings]
    if discovery is heldout:
        warnings.append(
            "the task is not split: the features were found and verified on the same "
            f"{len(heldout)} pairs"
        )
    if circuit.task.fingerprint and circuit.task.fingerprint != task.fingerprint:
        warnings.append("the features were measured on other pairs than the circuit")
    if not controls:
        warnings.append(
            "no pushes along other features' directions were drawn, so nothing shows that another "
            "direction would not do as much"
        )
    return tuple(warnings)


def _arrays(
    ranking: AttributionRanking,
    exchange: ExchangeMeasurement | None,
    edges: Sequence[FeatureEdgeEffect],
) -> dict[str, Float[Tensor, "pair _"]]:
    """Return the raw numbers of each pair, by the names that they have in the run folder."""
    if exchange is None:
        return {}
    arrays = {
        "attribution": ranking.per_pair,
        "noised": exchange.noised,
        "denoised": exchange.denoised,
        "removed": exchange.removed,
        "activation": exchange.activation,
    }
    if edges:
        arrays["edges"] = torch.stack([edge.whole for edge in edges], 1)
        arrays["edge_activation"] = torch.stack([_activation_change(edge) for edge in edges], 1)
    return arrays


def _activation_change(edge: FeatureEdgeEffect) -> Float[Tensor, "pair"]:
    """Return the change of the target's activation, NaN for an edge out of a feature."""
    if edge.activation_change is None:
        return torch.full_like(edge.whole, torch.nan)
    return edge.activation_change
