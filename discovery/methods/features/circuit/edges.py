"""Edges of features in a circuit: what nodes tell a feature, and what a feature tells the nodes behind it.

Path patching (Goldowsky-Dill et al. 2023, arXiv 2304.05969) with the dictionary in the path. Into a feature: what the dictionary reads gets
(source corrupted − source clean) added, on the direct path and nowhere else; the feature is encoded anew, and moves the metric alone,
the error term and all other features as they were. Out of one: (c_corrupted − c_clean) d is added to what a head's q, k or v, an MLP or the
logits read, and to nothing else. An effect is m(clean) − m(patched) of each pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.info import ModelInfo
from discovery.engine import Engine, prompt_macs, row_macs
from discovery.features import SAE
from discovery.methods.features.arguments import PairPositions
from discovery.methods.features.circuit.exchange import contributions
from discovery.methods.features.direct_logits import to_residual_stream
from discovery.methods.features.pushes import push
from discovery.methods.features.splice import SplicedBlock, spliced_blocks
from discovery.methods.patching import compute_output_change, measure_edge
from discovery.sites import EMBED, LOGITS, FeatureSite, Node, Site, Slot, feature

RESIDUAL_SITES = ("resid_pre", "resid_mid", "resid_post")
WRITER_KIND: dict[str, str] = {
    "z": "attention_head",
    "attn_out": "attention_head",
    "mlp_out": "mlp",
}  # what writes at a site


@dataclass(frozen=True)
class FeatureEdgeEffect:
    """One edge, pair by pair.

    Attributes:
        whole: m(clean) − m(patched), all inputs of the target together. inputs: through each alone.
        activation: into a feature: how far its activation moves towards that of the corrupted run, summed over the positions, in its own
            units; None of other edges.
        own: into a feature: how far the two runs' activations are apart, summed likewise.
    """

    source: Node
    target: Node
    whole: Float[Tensor, "pair"]
    inputs: dict[Slot, Float[Tensor, "pair"]]
    activation_change: Float[Tensor, "pair"] | None = None
    activation_gap: Float[Tensor, "pair"] | None = None


def feature_node(sae: SAE, number: int) -> Node:
    """A feature of a dictionary as a node: where it is written."""
    return feature(sae.writes.layer, number, _site(sae.writes))


def find_sources(info: ModelInfo, sae: SAE, nodes: Iterable[Node]) -> list[Node]:
    """The nodes whose output the dictionary reads directly: in the stream all that came before, elsewhere what writes there."""
    place = feature(sae.reads.layer, 0, _site(sae.reads))
    if sae.reads.kind in RESIDUAL_SITES:
        return [node for node in sorted({EMBED, *nodes}) if node.feeds(place)]
    return [
        node
        for node in sorted(set(nodes))
        if node.layer == sae.reads.layer and node.kind == WRITER_KIND[sae.reads.kind]
    ]


def find_targets(info: ModelInfo, sae: SAE, nodes: Iterable[Node]) -> list[Node]:
    """The nodes that read the stream behind where the dictionary writes."""
    place = feature(sae.writes.layer, 0, _site(sae.writes))
    beside = (
        info.parallel and sae.writes.kind not in RESIDUAL_SITES
    )  # attention and MLP of a layer read the same stream
    return [
        node
        for node in sorted({LOGITS, *nodes})
        if place.feeds(node) and not (beside and node.layer == sae.writes.layer)
    ]


def measure_feature_edges(
    engine: Engine, sae: SAE, places: PairPositions, features: Sequence[int], nodes: Sequence[Node]
) -> list[FeatureEdgeEffect]:
    """Every edge between these features and these nodes, embed and logits."""
    info = engine.backend.info
    sources, targets = find_sources(info, sae, nodes), find_targets(info, sae, nodes)
    parts: list[list[FeatureEdgeEffect]] = []
    for view in spliced_blocks(engine, sae, places):
        pair = sum(1 / prompt_macs(info, n) for n in view.block.prompts.length.tolist())
        behind = row_macs(
            info, view.block.prompts.width, start=sae.writes.layer, columns=info.n_logits
        )
        view.block.meter.begin(
            "feature edges", len(features) * (len(sources) + 3 * len(targets)) * behind * pair
        )
        into = [
            told
            for source in sources
            for told in _edges_into_features(view, engine, source, features)
        ]
        parts.append([*into, *_edges_out_of_features(view, engine, targets, features)])
    return [_join_blocks(same) for same in zip(*parts, strict=True)]


def _edges_into_features(
    view: SplicedBlock, engine: Engine, source: Node, features: Sequence[int]
) -> Iterator[FeatureEdgeEffect]:
    """What one node tells each feature."""
    before, clean = contributions(view, features, "clean")
    elsewhere, _ = contributions(view, features, "corrupted")
    after, patched = contributions(view, features, "clean", _change_read(view, engine, source))
    directions = view.sae.directions(features).unsqueeze(1)
    metric = push(
        view, (patched - clean).permute(2, 0, 1).unsqueeze(-1), directions, label="feature edges"
    )
    way = before - elsewhere
    effect, moved, own = (
        view.block.baseline("clean") - metric,
        ((before - after) * way.sign()).sum(1),
        way.abs().sum(1),
    )
    for i, number in enumerate(features):
        yield FeatureEdgeEffect(
            source,
            feature_node(view.sae, number),
            effect[i],
            {"feature": effect[i]},
            moved[:, i],
            own[:, i],
        )


def _change_read(view: SplicedBlock, engine: Engine, source: Node) -> Float[Tensor, "pair pos ..."]:
    """How what the dictionary reads changes where one node's output alone is the corrupted run's."""
    site = view.sae.reads
    if site.kind != "z":
        return compute_output_change(view.block, engine, source)
    clean, corrupted = (view.block.activation(side, site) for side in ("clean", "corrupted"))
    assert source.head is not None
    own = torch.arange(clean.shape[2], device=clean.device).eq(source.head)
    return torch.where(own[:, None], corrupted - clean, 0.0)


def _edges_out_of_features(
    view: SplicedBlock, engine: Engine, targets: Sequence[Node], features: Sequence[int]
) -> Iterator[FeatureEdgeEffect]:
    """What each feature tells the nodes behind it."""
    _, clean = contributions(view, features, "clean")
    _, corrupted = contributions(view, features, "corrupted")
    along = to_residual_stream(engine.backend, view.sae, view.sae.directions(features))
    base = view.block.baseline("clean")
    for i, number in enumerate(features):
        source = feature_node(view.sae, number)
        delta = ((corrupted - clean)[..., i, None] * along[i]).to(
            view.target_activation(torch.arange(len(view), device=clean.device))
        )
        for target in targets:
            found = measure_edge(view.block, engine, source, target, delta)
            yield FeatureEdgeEffect(
                source,
                target,
                base - found.whole,
                {slot: base - metric for slot, metric in found.inputs.items()},
            )


def _join_blocks(same: Sequence[FeatureEdgeEffect]) -> FeatureEdgeEffect:
    """One edge over all blocks of pairs."""
    one = same[0]
    inputs = {slot: torch.cat([part.inputs[slot] for part in same]) for slot in one.inputs}
    whole = torch.cat([part.whole for part in same])
    falls, owns = (
        [getattr(part, name) for part in same] for name in ("activation_change", "activation_gap")
    )
    if one.activation_change is None:
        return FeatureEdgeEffect(one.source, one.target, whole, inputs)
    return FeatureEdgeEffect(
        one.source, one.target, whole, inputs, torch.cat(falls), torch.cat(owns)
    )


def _site(site: Site) -> FeatureSite:
    """A dictionary's site as a feature's; `add_features` has refused the others."""
    return site.kind  # type: ignore[return-value]  # checked there
