"""Edges: what one node passes on to another through one of the other's inputs.

Path patching (Goldowsky-Dill et al. 2023, arXiv 2304.05969) between two nodes of the clean run: the
output change of the source, s corrupted − s clean, is added to one input slot of the target alone.
The target is recomputed, and everything behind it runs freely. The effect is the
noising-normalised change of the metric, so 1 means that this edge alone carries the behaviour.

The slots are q, k and v of a head, the input of an MLP, and the final residual stream for the
logits; `EdgeMetrics.whole` changes all slots of the target at once. If several query heads share
keys and values, an edge into k or v gives the target a copy of its own: the other query heads of
the group read what they read before.

Nothing here needs a forward pass through the whole model: the new value of a slot and the new
output of the target are computed from one layer, and only the layers behind the target are run
again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from discovery.backends.base import Batch
from discovery.engine import Block, Engine, Rows, Window, prompt_macs, row_macs
from discovery.interventions import Edit
from discovery.sites import EMBED, LOGITS, Node, Site, Slot, output_site, slots_of


@dataclass(frozen=True)
class EdgeMetrics:
    """The effect of the edge between one ordered pair of nodes.

    Attributes:
        source: the node whose output changes.
        target: the node that reads the change.
        whole: the metric of each pair with all inputs of the target changed together, [pair].
        inputs: the metric of each pair with one slot of the target changed, by slot.
    """

    source: Node
    target: Node
    whole: Float[Tensor, "pair"]
    inputs: dict[Slot, Float[Tensor, "pair"]]


def edges_between(nodes: Iterable[Node], *, parallel: bool = False) -> list[tuple[Node, Node]]:
    """List every ordered pair among these nodes, embed and logits whose first can feed its second.

    Args:
        nodes: the nodes.
        parallel: whether the attention and the MLP of a layer read the same stream, so that the
            heads of a layer do not feed its MLP.
    """
    ends = sorted({EMBED, LOGITS, *nodes})

    def can_feed(source: Node, target: Node) -> bool:
        is_same_layer = source.layer is not None and source.layer == target.layer
        return source.feeds(target) and not (parallel and is_same_layer)

    return [(source, target) for target in ends for source in ends if can_feed(source, target)]


def measure_edge_effects(engine: Engine, nodes: Sequence[Node]) -> list[EdgeMetrics]:
    """Measure every edge among these nodes, embed and logits; see `measure_edges`."""
    return measure_edges(engine, edges_between(nodes, parallel=engine.backend.info.parallel))


def measure_edges(engine: Engine, edges: Sequence[tuple[Node, Node]]) -> list[EdgeMetrics]:
    """Measure these edges.

    Args:
        engine: the model and the pairs.
        edges: the source and the target of each.

    Raises:
        BudgetError: if the meter's budget does not suffice for a block of pairs.
    """
    effects_by_block: list[list[EdgeMetrics]] = []
    for _, block in engine.blocks():
        cost = sum(_estimate_edge(block, engine, target) for _, target in edges)
        block.meter.begin("edges", cost)
        effects = []
        for source, target in edges:
            change = compute_output_change(block, engine, source)
            effects.append(measure_edge(block, engine, source, target, change))
        effects_by_block.append(effects)
    return [_join_blocks(parts) for parts in zip(*effects_by_block, strict=True)]


def estimate_edge(engine: Engine, target: Node) -> float:
    """Return the forward-pass equivalents of one edge into a target; 0 for the logits."""
    return sum(_estimate_edge(block, engine, target) for _, block in engine.blocks())


def _join_blocks(parts: Sequence[EdgeMetrics]) -> EdgeMetrics:
    """Join the effects of one edge on several blocks of pairs."""
    return EdgeMetrics(
        source=parts[0].source,
        target=parts[0].target,
        whole=torch.cat([part.whole for part in parts]),
        inputs={slot: torch.cat([part.inputs[slot] for part in parts]) for slot in parts[0].inputs},
    )


def measure_edge(
    block: Block,
    engine: Engine,
    source: Node,
    target: Node,
    delta: Float[Tensor, "pair pos d_model"],
) -> EdgeMetrics:
    """Measure what `delta` does to the metric if only the inputs of the target read it.

    Args:
        block: the pairs.
        engine: the model.
        source: the node that the result names as the source.
        target: the node whose inputs read `delta`.
        delta: added to the clean residual stream as the target's inputs read it.
    """
    if target == LOGITS:
        whole = _metric_with_change(block, engine.backend.info.n_layers, False, delta)
        return EdgeMetrics(source, target, whole, {"logits": whole})
    assert target.layer is not None
    if target.kind != "mlp":
        return _measure_head_edge(block, engine, source, target, delta)
    site = Site("mlp_out", target.layer)
    output = run_mlp(block, engine, target.layer, delta)
    if engine.backend.abilities.linear_heads:
        change = output - block.activation("clean", site)
        whole = _metric_with_change(block, target.layer + 1, False, change)
    else:
        whole = _metric_with_value(block, site, output)
    return EdgeMetrics(source, target, whole, {"mlp": whole})


def compute_output_change(
    block: Block, engine: Engine, source: Node
) -> Float[Tensor, "pair pos d_model"]:
    """Return s corrupted − s clean of a node, as it enters the residual stream."""
    site = Site("resid_pre", 0) if source == EMBED else output_site(source)
    change = block.activation("corrupted", site) - block.activation("clean", site)
    if source == EMBED or source.kind == "mlp":
        return change
    assert source.layer is not None
    assert source.head is not None
    output_weights = engine.backend.head_weights(source.layer)[source.head]
    return change[:, :, source.head] @ output_weights.to(change.dtype)


def _measure_head_edge(
    block: Block, engine: Engine, source: Node, target: Node, delta: Tensor
) -> EdgeMetrics:
    assert target.layer is not None
    assert target.head is not None
    layer = target.layer
    stream = block.activation("clean", Site("resid_pre", layer))
    slots = slots_of(target)
    # The slots of a head (q, k, v) are activation kinds too.
    slot_sites = [Site(slot, layer) for slot in slots]  # type: ignore[arg-type]
    output = Site("z", layer)
    changed = _run_layer(block, engine, layer, stream + delta, [*slot_sites, output], [])
    z_by_slot: dict[Slot, Tensor] = {}
    for slot, site in zip(slots, slot_sites, strict=True):
        # The edit changes the slot of every head of the layer, every key-value head included. Only
        # the output of the target head is used below, so each query head reads a copy of its own.
        edit = Edit(site, changed[site])
        z_by_slot[slot] = _run_layer(block, engine, layer, stream, [output], [edit])[output]
    whole = _metric_with_head_output(block, engine, target, changed[output])
    inputs = {
        slot: _metric_with_head_output(block, engine, target, z) for slot, z in z_by_slot.items()
    }
    return EdgeMetrics(source, target, whole, inputs)


def _metric_with_head_output(
    block: Block, engine: Engine, target: Node, z: Float[Tensor, "pair pos head d_head"]
) -> Float[Tensor, "pair"]:
    """Measure the metric with the z of one head changed.

    The change is added right behind the attention if the residual stream is a plain sum; otherwise
    z is edited in its layer.
    """
    assert target.layer is not None
    assert target.head is not None
    info = engine.backend.info
    abilities = engine.backend.abilities
    layer = target.layer
    ends_layer = info.attn_only or info.parallel  # nothing else in the layer reads the heads
    if not abilities.linear_heads or not (ends_layer or abilities.after_attention):
        is_target = torch.arange(info.n_heads, device=z.device) == target.head
        return _metric_with_value(block, Site("z", layer), z, is_target)
    difference = (z - block.activation("clean", Site("z", layer)))[:, :, target.head]
    output_weights = engine.backend.head_weights(layer)[target.head]
    change = difference @ output_weights.to(difference.dtype)
    return _metric_with_change(block, layer + 1 if ends_layer else layer, not ends_layer, change)


def run_heads(
    block: Block, engine: Engine, layer: int, delta: Tensor
) -> Float[Tensor, "pair pos head d_head"]:
    """Compute z of every head of a layer when `delta` is added to the input of all of them."""
    site = Site("z", layer)
    stream = block.activation("clean", Site("resid_pre", layer))
    return _run_layer(block, engine, layer, stream + delta, [site], [])[site]


def run_mlp(
    block: Block, engine: Engine, layer: int, delta: Tensor
) -> Float[Tensor, "pair pos d_model"]:
    """Compute the output of a layer's MLP when `delta` is added to its input."""
    info = engine.backend.info
    out = Site("mlp_out", layer)
    layer_input = block.activation("clean", Site("resid_pre", layer))
    if info.parallel:
        return _run_layer(block, engine, layer, layer_input + delta, [out], [])[out]
    mlp_input = block.activation("clean", Site("resid_mid", layer)) + delta
    if engine.backend.abilities.after_attention:
        return _run_layer(block, engine, layer, mlp_input, [out], [], after_attention=True)[out]
    edit = Edit(Site("resid_mid", layer), mlp_input)
    return _run_layer(block, engine, layer, layer_input, [out], [edit])[out]


def _run_layer(
    block: Block,
    engine: Engine,
    layer: int,
    residual: Tensor,
    reads: Sequence[Site],
    edits: Sequence[Edit],
    *,
    after_attention: bool = False,
) -> dict[Site, Tensor]:
    """Run one layer on a changed residual stream, in batches, and read some of its sites."""
    info = engine.backend.info
    prompts = block.prompts
    parts: dict[Site, list[Tensor]] = {site: [] for site in reads}
    macs = row_macs(
        info,
        prompts.width,
        start=layer,
        stop=layer + 1,
        after_attention=after_attention,
        columns=0,
    )
    batch_size = max(1, block.rows_that_fit(0, prompts.width, macs))
    for first in range(0, len(prompts), batch_size):
        part = slice(first, first + batch_size)
        batch_edits = [
            Edit(edit.site, edit.value[part], edit.where, operation=edit.operation)
            for edit in edits
        ]
        batch = Batch(
            tokens=prompts.clean[part],
            answer_position=None,
            start=layer,
            residual=residual[part],
            after_attention=after_attention,
            stop=layer + 1,
        )
        activations = block.run(batch, reads, batch_edits).activations
        for site in reads:
            parts[site].append(activations[site])
        block.meter.add(sum(macs / prompt_macs(info, n) for n in prompts.length[part].tolist()))
    return {site: torch.cat(values) for site, values in parts.items()}


def _metric_with_change(
    block: Block, start: int, after_attention: bool, change: Float[Tensor, "pair pos d_model"]
) -> Float[Tensor, "pair"]:
    """Measure the metric with `change` added to the clean residual stream at a start.

    Everything behind the start runs freely.
    """

    def residual(window: Window) -> Tensor:
        unchanged = block.stream("clean", start, window, after_attention=after_attention)
        return unchanged + change[window.pair, window.first : window.end]

    rows = Rows(
        base="clean",
        pair=torch.arange(len(block.prompts), device=change.device),
        first=block.prompts.first_difference,
        start=start,
        after_attention=after_attention,
        residual=residual,
    )
    return block.measure(rows)


def _metric_with_value(
    block: Block, site: Site, value: Tensor, heads: Bool[Tensor, "head"] | None = None
) -> Float[Tensor, "pair"]:
    """Measure the metric with a site of the clean run replaced, or only some of its heads."""
    where = None if heads is None else heads.expand(1, 1, -1)  # [row pos head]

    def edits(window: Window) -> list[Edit]:
        return [Edit(site, value[:, window.first : window.end], where, index=window.pair)]

    rows = Rows(
        base="clean",
        pair=torch.arange(len(block.prompts), device=value.device),
        first=block.prompts.first_difference,
        start=site.layer,
        edits=edits,
    )
    return block.measure(rows)


def _estimate_edge(block: Block, engine: Engine, target: Node) -> float:
    """Estimate the forward-pass equivalents of one edge into a target."""
    info = engine.backend.info
    n_pairs = len(block.prompts)
    if target == LOGITS or target.layer is None:
        return 0.0
    layers_behind = (info.n_layers - target.layer) / info.n_layers
    runs = 4 if target.kind == "attention_head" else 1
    return n_pairs * runs * (layers_behind + 1 / info.n_layers)
