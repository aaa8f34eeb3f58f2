"""Edges of features in a circuit: between features and the heads and MLPs before and behind them.

This is path patching (Goldowsky-Dill et al. 2023, arXiv 2304.05969) with the SAE in the path.

Into a feature: source corrupted − source clean is added to what the SAE reads, on the direct path
and nowhere else. The feature is encoded again, and it alone changes the metric: the error term and
all other features stay as they were.

Out of a feature: (c_corrupted − c_clean) d is added to what a head's q, k or v, an MLP or the
logits read, and to nothing else.

An effect is m(clean) − m(patched) of each pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.info import ModelInfo
from discovery.engine import Engine, row_macs
from discovery.features import SAE
from discovery.methods.features.direct_logits import to_residual_stream
from discovery.methods.features.pushes import one_case_each, push
from discovery.methods.features.splice import SplicedBlock, SplicedTask, forward_equivalents
from discovery.methods.patching import compute_output_change, measure_edge
from discovery.sites import EMBED, LOGITS, FeatureSite, Node, Site, Slot, feature

RESIDUAL_SITES = ("resid_pre", "resid_mid", "resid_post")

# The kind of node that writes at a site outside the residual stream.
WRITER_KIND: Mapping[str, str] = {
    "z": "attention_head",
    "attn_out": "attention_head",
    "mlp_out": "mlp",
}


@dataclass(frozen=True, kw_only=True)
class FeatureEdgeEffect:
    """The effect of one edge on each pair.

    Attributes:
        source: where the edge starts.
        target: where the edge ends.
        whole: m(clean) − m(patched) with all inputs of the target patched together.
        inputs: the same through each input alone.
        activation_change: for an edge into a feature, how far its activation moves towards that of
            the corrupted run, summed over the positions, in units of the activation. None for an
            edge out of a feature.
        activation_gap: for an edge into a feature, |z_clean − z_corrupted|, summed in the same way.
    """

    source: Node
    target: Node
    whole: Float[Tensor, "pair"]
    inputs: Mapping[Slot, Float[Tensor, "pair"]]
    activation_change: Float[Tensor, "pair"] | None = None
    activation_gap: Float[Tensor, "pair"] | None = None


def feature_node(sae: SAE, number: int) -> Node:
    """Return a feature of an SAE as a node at the site that the SAE writes."""
    return feature(sae.writes.layer, number, _feature_site(sae.writes))


def find_sources(sae: SAE, nodes: Iterable[Node]) -> list[Node]:
    """Return the nodes whose output the SAE reads directly.

    An SAE of the residual stream reads all earlier nodes, and the embedding. Any other SAE reads
    the nodes that write at its site.
    """
    place = feature(sae.reads.layer, 0, _feature_site(sae.reads))
    if sae.reads.kind in RESIDUAL_SITES:
        return [node for node in sorted({EMBED, *nodes}) if node.feeds(place)]
    kind = WRITER_KIND[sae.reads.kind]
    return [
        node for node in sorted(set(nodes)) if node.layer == sae.reads.layer and node.kind == kind
    ]


def find_targets(info: ModelInfo, sae: SAE, nodes: Iterable[Node]) -> list[Node]:
    """Return the nodes, logits included, that read the residual stream after the SAE's site."""
    place = feature(sae.writes.layer, 0, _feature_site(sae.writes))
    # In a parallel model, attention and MLP of a layer read the same stream, not each other.
    same_layer_reads = not info.parallel or sae.writes.kind in RESIDUAL_SITES
    return [
        node
        for node in sorted({LOGITS, *nodes})
        if place.feeds(node) and (same_layer_reads or node.layer != sae.writes.layer)
    ]


def measure_feature_edges(
    spliced: SplicedTask, features: Sequence[int], nodes: Sequence[Node]
) -> list[FeatureEdgeEffect]:
    """Measure every edge between these features and these nodes, embedding and logits included."""
    engine, sae = spliced.engine, spliced.sae
    info = engine.backend.info
    sources = find_sources(sae, nodes)
    targets = find_targets(info, sae, nodes)
    n_passes = len(features) * (len(sources) + 3 * len(targets))
    by_block: list[list[FeatureEdgeEffect]] = []
    for view in spliced.blocks():
        prompts = view.block.prompts
        macs = row_macs(info, prompts.width, start=sae.writes.layer, columns=info.n_logits)
        work = n_passes * forward_equivalents(info, macs, prompts.length.tolist())
        view.block.meter.begin("feature edges", work)
        edges = [
            edge
            for source in sources
            for edge in _edges_into_features(view, engine, source, features)
        ]
        edges += _edges_out_of_features(view, engine, targets, features)
        by_block.append(edges)
    return [_join_blocks(parts) for parts in zip(*by_block, strict=True)]


def _edges_into_features(
    view: SplicedBlock, engine: Engine, source: Node, features: Sequence[int]
) -> Iterator[FeatureEdgeEffect]:
    """Measure the edges from one node to each feature."""
    z_clean, clean = view.contributions(features, "clean")
    z_corrupted, _ = view.contributions(features, "corrupted")
    shift = _change_read(view, engine, source)
    z_patched, patched = view.contributions(features, "clean", shift)
    directions = view.sae.directions(features).unsqueeze(1)
    metric = push(view, one_case_each(patched - clean), directions, label="feature edges")
    effect = view.block.baseline("clean") - metric
    difference = z_clean - z_corrupted
    change = ((z_clean - z_patched) * difference.sign()).sum(1)
    gap = difference.abs().sum(1)
    for i, number in enumerate(features):
        yield FeatureEdgeEffect(
            source=source,
            target=feature_node(view.sae, number),
            whole=effect[i],
            inputs={"feature": effect[i]},
            activation_change=change[:, i],
            activation_gap=gap[:, i],
        )


def _change_read(view: SplicedBlock, engine: Engine, source: Node) -> Float[Tensor, "pair pos ..."]:
    """Return the change of what the SAE reads if one node's output alone is the corrupted run's."""
    site = view.sae.reads
    if site.kind != "z":
        return compute_output_change(view.block, engine, source)
    assert source.head is not None
    clean = view.block.activation("clean", site)
    corrupted = view.block.activation("corrupted", site)
    is_source = torch.arange(clean.shape[2], device=clean.device).eq(source.head)
    return torch.where(is_source[:, None], corrupted - clean, 0.0)


def _edges_out_of_features(
    view: SplicedBlock, engine: Engine, targets: Sequence[Node], features: Sequence[int]
) -> Iterator[FeatureEdgeEffect]:
    """Measure the edges from each feature to the nodes that read it."""
    _, clean = view.contributions(features, "clean")
    _, corrupted = view.contributions(features, "corrupted")
    along = to_residual_stream(engine.backend, view.sae, view.sae.directions(features))
    activation = view.target_activation(view.all_pairs)
    base = view.block.baseline("clean")
    for i, number in enumerate(features):
        source = feature_node(view.sae, number)
        delta = ((corrupted - clean)[..., i, None] * along[i]).to(activation)
        for target in targets:
            patched = measure_edge(view.block, engine, source, target, delta)
            yield FeatureEdgeEffect(
                source=source,
                target=target,
                whole=base - patched.whole,
                inputs={slot: base - metric for slot, metric in patched.inputs.items()},
            )


def _join_blocks(parts: Sequence[FeatureEdgeEffect]) -> FeatureEdgeEffect:
    """Join the effects of one edge over all blocks of pairs."""
    first = parts[0]
    changes = [part.activation_change for part in parts if part.activation_change is not None]
    gaps = [part.activation_gap for part in parts if part.activation_gap is not None]
    return FeatureEdgeEffect(
        source=first.source,
        target=first.target,
        whole=torch.cat([part.whole for part in parts]),
        inputs={slot: torch.cat([part.inputs[slot] for part in parts]) for slot in first.inputs},
        activation_change=torch.cat(changes) if changes else None,
        activation_gap=torch.cat(gaps) if gaps else None,
    )


def _feature_site(site: Site) -> FeatureSite:
    """Return the kind of a site as that of a feature; `add_features` has refused other kinds."""
    return site.kind  # type: ignore[return-value]  # checked there
