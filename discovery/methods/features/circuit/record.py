"""Features, their edges and their SAE in the form of a circuit record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from discovery.features import SAE, short_name
from discovery.graph import (
    CircuitEdge,
    CircuitGraph,
    CircuitNode,
    FeatureFacts,
    NodeEffect,
    SAEFacts,
)
from discovery.methods.arguments import Positions
from discovery.methods.features.circuit.candidates import Candidate
from discovery.methods.features.circuit.edges import FeatureEdgeEffect
from discovery.methods.features.circuit.exchange import ExchangeMeasurement
from discovery.methods.features.circuit.split import SplitMeasurement
from discovery.methods.features.reconstruction import Reconstruction

VERDICT_NOTE = (
    "Features stand beside the circuit and enter no condition and no verdict, because those "
    "are about heads and MLPs. Measuring features on held-out pairs does not count as a look at "
    "another circuit."
)
MAX_TOKENS_LISTED = 3  # of each kind, in a record


class _Token(Protocol):
    """A token with its text, which is None if the model has no tokenizer."""

    @property
    def token(self) -> int: ...

    @property
    def text(self) -> str | None: ...


def features_result_id(sae: SAE) -> str:
    """Return the id of the arrays that the features of an SAE rest on."""
    return f"features-{sae.writes.kind}-{sae.writes.layer}"


def feature_record(
    candidate: Candidate,
    exchange: ExchangeMeasurement,
    i: int,
    sae: SAE,
    heldout: SplitMeasurement,
    positions: Positions,
) -> CircuitNode:
    """Return a candidate that holds as a node of the record.

    Args:
        i: the candidate's number in the exchange measurement.
        heldout: the pairs that the exchange was measured on.
    """
    mean = candidate.noising.mean or 0.0
    direct = exchange.direct[i]
    facts = FeatureFacts(
        index=candidate.node.feature or 0,
        site=candidate.node.site or "resid_pre",
        activation=heldout.mean(exchange.activation[:, i]),
        attribution=candidate.attribution,
        removal=candidate.removal,
        control_p=candidate.control_p,
        fires_on=_token_texts(exchange.tokens[i]),
        promotes=_token_texts(direct.promoted),
        suppresses=_token_texts(direct.suppressed),
        link=sae.link(candidate.node.feature or 0),
    )
    return CircuitNode.of(
        candidate.node,
        effect=NodeEffect(noising=candidate.noising, denoising=candidate.denoising),
        sign=(mean > 0) - (mean < 0),
        positions=_position_list(positions),
        feature=facts,
        evidence=(features_result_id(sae),),
    )


def edge_record(edge: FeatureEdgeEffect, discovery: SplitMeasurement, sae: SAE) -> CircuitEdge:
    """Return a measured edge as an edge of the record, whether it holds or not."""
    activation = None
    if edge.activation_change is not None and edge.activation_gap is not None:
        activation = discovery.ratio_of_means(edge.activation_change, edge.activation_gap)
    return CircuitEdge(
        source=str(edge.source),
        target=str(edge.target),
        effect=discovery.share_of_gap(edge.whole),
        inputs={slot: discovery.share_of_gap(values) for slot, values in edge.inputs.items()},
        activation=activation,
        evidence=(features_result_id(sae),),
    )


def replace_features(
    circuit: CircuitGraph,
    sae_facts: SAEFacts,
    nodes: Sequence[CircuitNode],
    edges: Sequence[CircuitEdge],
) -> CircuitGraph:
    """Return the record with these features instead of earlier ones of the same site."""
    site = (sae_facts.layer, sae_facts.site)
    replaced = {
        node.id
        for node in circuit.nodes
        if node.feature and (node.layer, node.feature.site) == site
    }
    other_saes = [sae for sae in circuit.dictionaries if (sae.layer, sae.site) != site]
    other_nodes = [node for node in circuit.nodes if node.id not in replaced]
    other_edges = [edge for edge in circuit.edges if not {edge.source, edge.target} & replaced]
    saes = sorted([*other_saes, sae_facts], key=lambda sae: (sae.layer, sae.site))
    # A copy by `model_copy` would not check the new values, so the record is built again. Fields
    # that this version does not know are kept, too.
    names = [*CircuitGraph.model_fields, *(circuit.model_extra or {})]
    fields: dict[str, Any] = {name: getattr(circuit, name) for name in names}
    changed = {
        "dictionaries": tuple(saes),
        "nodes": (*other_nodes, *nodes),
        "edges": (*other_edges, *edges),
    }
    return CircuitGraph(**fields | changed)


def sae_record(
    sae: SAE,
    positions: Positions,
    splits: tuple[SplitMeasurement, SplitMeasurement],
    reconstruction: Reconstruction,
    candidates: Sequence[Candidate],
    warnings: Sequence[str],
) -> SAEFacts:
    """Return the SAE that the features belong to, as the record has it.

    Args:
        splits: the discovery pairs and the held-out pairs.
    """
    discovery, heldout = splits
    share = reconstruction.share
    return SAEFacts(
        sae=short_name(sae.name),  # the fingerprint identifies it on any machine
        fingerprint=sae.fingerprint,
        layer=sae.writes.layer,
        site=sae.writes.kind,  # type: ignore[arg-type]  # checked by pydantic
        reads=f"{sae.reads.kind}.{sae.reads.layer}",
        d_sae=sae.d_sae,
        positions=_position_list(positions),
        variance_explained=reconstruction.variance_explained,
        l0=reconstruction.l0,
        share=share.mean if share else None,
        found_on=len(discovery),
        verified_on=len(heldout),
        candidates=tuple(str(candidate.node) for candidate in candidates),
        warnings=tuple(warnings),
        note=VERDICT_NOTE,
        evidence=(features_result_id(sae),),
    )


def _position_list(positions: Positions) -> tuple[int | str, ...] | None:
    return None if positions is None or isinstance(positions, slice) else tuple(positions)


def _token_texts(tokens: Sequence[_Token]) -> tuple[str, ...]:
    """Return the first tokens as text, or as their ids if the model has no tokenizer."""
    return tuple(
        str(token.token) if token.text is None else token.text
        for token in tokens[:MAX_TOKENS_LISTED]
    )
