"""Features, their edges and their dictionary as a circuit record has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from discovery.features import SAE, short_name
from discovery.graph import (
    CircuitEdge,
    CircuitGraph,
    CircuitNode,
    FeatureFacts,
    NodeEffect,
    SAEFacts,
)
from discovery.methods.features.arguments import Positions
from discovery.methods.features.circuit.candidates import Candidate
from discovery.methods.features.circuit.edges import FeatureEdgeEffect
from discovery.methods.features.circuit.exchange import ExchangeMeasurement
from discovery.methods.features.circuit.split import SplitMeasurement

VERDICT_NOTE = (
    "Features stand beside the circuit and enter no condition and no verdict: those are about heads and MLPs. "
    "Looking at held-out pairs for them counts as no look at another circuit."
)
MAX_TOKENS_LISTED = 3  # of each kind, in a record


def features_result_id(sae: SAE) -> str:
    """The id of the arrays that a dictionary's features rest on."""
    return f"features-{sae.writes.kind}-{sae.writes.layer}"


def feature_record(
    candidate: Candidate,
    measured: ExchangeMeasurement,
    i: int,
    sae: SAE,
    last: SplitMeasurement,
    positions: Positions,
) -> CircuitNode:
    """A feature that holds."""
    mean, direct = candidate.noising.mean or 0.0, measured.direct[i]
    facts = FeatureFacts(
        index=candidate.node.feature or 0,
        site=candidate.node.site or "resid_pre",
        activation=last.mean(measured.activation[:, i]),
        attribution=candidate.attribution,
        removal=candidate.removal,
        control_p=candidate.control_p,
        fires_on=_texts(measured.tokens[i]),
        promotes=_texts(direct.promoted),
        suppresses=_texts(direct.suppressed),
        link=sae.link(candidate.node.feature or 0),
    )
    return CircuitNode.of(
        candidate.node,
        effect=NodeEffect(noising=candidate.noising, denoising=candidate.denoising),
        sign=(mean > 0) - (mean < 0),
        positions=_listed(positions),
        feature=facts,
        evidence=(features_result_id(sae),),
    )


def edge_record(told: FeatureEdgeEffect, first: SplitMeasurement, sae: SAE) -> CircuitEdge:
    """An edge, whether it holds or not."""
    return CircuitEdge(
        source=str(told.source),
        target=str(told.target),
        effect=first.share_of_gap(told.whole),
        inputs={slot: first.share_of_gap(values) for slot, values in told.inputs.items()},
        activation=None
        if told.activation_change is None or told.activation_gap is None
        else first.ratio_of_means(told.activation_change, told.activation_gap),
        evidence=(features_result_id(sae),),
    )


def replace_features(
    circuit: CircuitGraph,
    sae_facts: SAEFacts,
    nodes: Sequence[CircuitNode],
    edges: Sequence[CircuitEdge],
) -> CircuitGraph:
    """The record with these features in place of those of a dictionary of the same site."""
    gone = {
        node.id
        for node in circuit.nodes
        if node.feature and (node.layer, node.feature.site) == (sae_facts.layer, sae_facts.site)
    }
    others = tuple(
        old
        for old in circuit.dictionaries
        if (old.layer, old.site) != (sae_facts.layer, sae_facts.site)
    )
    fields: dict[str, Any] = {
        name: getattr(circuit, name)
        for name in [*CircuitGraph.model_fields, *(circuit.model_extra or {})]
    }
    return CircuitGraph(
        **fields
        | {
            "dictionaries": tuple(
                sorted((*others, sae_facts), key=lambda one: (one.layer, one.site))
            ),
            "nodes": (*(node for node in circuit.nodes if node.id not in gone), *nodes),
            "edges": (
                *(edge for edge in circuit.edges if not {edge.source, edge.target} & gone),
                *edges,
            ),
        }
    )


def _listed(positions: Positions) -> tuple[int | str, ...] | None:
    return None if positions is None or isinstance(positions, slice) else tuple(positions)


def _texts(tokens: Sequence[Any]) -> tuple[str, ...]:
    """Tokens as text, or as their numbers where the model has no tokenizer."""
    return tuple(
        str(token.token) if token.text is None else token.text
        for token in tokens[:MAX_TOKENS_LISTED]
    )


def sae_record(
    sae: SAE,
    positions: Positions,
    splits: tuple[SplitMeasurement, SplitMeasurement],
    reconstruction: Any,
    candidates: Sequence[Candidate],
    warnings: Sequence[str],
) -> SAEFacts:
    """The dictionary that features are from."""
    share = reconstruction.share
    return SAEFacts(
        sae=short_name(sae.name),  # the fingerprint says which it is, anywhere
        fingerprint=sae.fingerprint,
        layer=sae.writes.layer,
        site=sae.writes.kind,  # type: ignore[arg-type]  # checked by pydantic
        reads=f"{sae.reads.kind}.{sae.reads.layer}",
        d_sae=sae.d_sae,
        positions=_listed(positions),
        variance_explained=reconstruction.variance_explained,
        l0=reconstruction.l0,
        share=share.mean if share else None,
        found_on=len(splits[0]),
        verified_on=len(splits[1]),
        candidates=tuple(str(candidate.node) for candidate in candidates),
        warnings=tuple(warnings),
        note=VERDICT_NOTE,
        evidence=(features_result_id(sae),),
    )
