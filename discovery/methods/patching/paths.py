"""Edges: what one node tells another through one of its inputs.

Path patching (Goldowsky-Dill et al. 2023, arXiv 2304.05969) between two nodes of the clean run: the input of the target d through
one slot alone gets (s corrupted − s clean) added, d is recomputed, and what follows runs freely. Effect: the
noising-normalised change of the metric, so 1 is "this edge alone carries the behaviour". Slots: q, k, v of a head, the input of an MLP, the
final residual stream of the logits. `all` adds it to every input of d at once. If several query
heads share keys and values, d reads a copy of its own for an edge into its k or v: the other query
heads of the group read what they read before.

Nothing here needs a forward pass through the whole model: a slot's new value is read from one layer, the target's new
output from the same layer, and only the layers behind the target are run again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Batch
from discovery.engine import Block, Engine, Rows, Window, prompt_macs, row_macs
from discovery.interventions import Edit
from discovery.sites import EMBED, LOGITS, Node, Site, Slot, output_site, slots_of


@dataclass(frozen=True)
class EdgeEffect:
    """One ordered pair of nodes.

    Attributes:
        whole: metric of each pair with all inputs of the target changed together, [pair].
        inputs: the same through each slot alone.
    """

    source: Node
    target: Node
    whole: Float[Tensor, "pair"]
    inputs: dict[Slot, Float[Tensor, "pair"]]


def edges_between(nodes: Iterable[Node], *, parallel: bool = False) -> list[tuple[Node, Node]]:
    """Every ordered pair among these nodes, embed and logits in which the first can feed the second.

    Args:
        parallel: attention and MLP of a layer read the same stream, so that its heads do not feed its MLP.
    """
    ends = sorted({EMBED, LOGITS, *nodes})
    beside = {
        (s, t)
        for s in ends
        for t in ends
        if parallel and s.layer is not None and s.layer == t.layer
    }
    return [
        (source, target)
        for target in ends
        for source in ends
        if source.feeds(target) and (source, target) not in beside
    ]


def measure_edge_effects(engine: Engine, nodes: Sequence[Node]) -> list[EdgeEffect]:
    """Measure every edge among `nodes`, embed and logits."""
    wanted = edges_between(nodes, parallel=engine.backend.info.parallel)
    parts: list[list[EdgeEffect]] = []
    for _, block in engine.blocks():
        block.meter.begin(
            "edges", sum(_estimate_edge(block, engine, target) for _, target in wanted)
        )
        parts.append([_edge(block, engine, source, target) for source, target in wanted])
    joined = []
    for same in zip(*parts, strict=True):
        inputs = {slot: torch.cat([part.inputs[slot] for part in same]) for slot in same[0].inputs}
        joined.append(
            EdgeEffect(
                same[0].source, same[0].target, torch.cat([part.whole for part in same]), inputs
            )
        )
    return joined


def _edge(block: Block, engine: Engine, source: Node, target: Node) -> EdgeEffect:
    return measure_edge(block, engine, source, target, compute_output_change(block, engine, source))


def measure_edge(
    block: Block,
    engine: Engine,
    source: Node,
    target: Node,
    delta: Float[Tensor, "pair pos d_model"],
) -> EdgeEffect:
    """What `delta`, added to the residual stream that the target's inputs read and nowhere else, does to the metric."""
    if target == LOGITS:
        whole = _metric_after(block, engine, engine.backend.info.n_layers, False, delta)
        return EdgeEffect(source, target, whole, {"logits": whole})
    assert target.layer is not None
    if target.kind == "mlp":
        site = Site("mlp_out", target.layer)
        said = _mlp_output(block, engine, target.layer, delta)
        if engine.backend.abilities.linear_heads:
            whole = _metric_after(
                block, engine, target.layer + 1, False, said - block.activation("clean", site)
            )
        else:
            whole = _metric_with(block, site, said)
        return EdgeEffect(source, target, whole, {"mlp": whole})
    return _measure_head_edge(block, engine, source, target, delta)


def compute_output_change(
    block: Block, engine: Engine, source: Node
) -> Float[Tensor, "pair pos d_model"]:
    """s corrupted − s clean, as it stands in the residual stream."""
    if source == EMBED:
        site = Site("resid_pre", 0)
        return block.activation("corrupted", site) - block.activation("clean", site)
    site = output_site(source)
    change = block.activation("corrupted", site) - block.activation("clean", site)
    if source.kind == "mlp":
        return change
    assert source.layer is not None
    assert source.head is not None
    return change[:, :, source.head] @ engine.backend.head_weights(source.layer)[source.head].to(
        change.dtype
    )


def _measure_head_edge(
    block: Block, engine: Engine, source: Node, target: Node, delta: Tensor
) -> EdgeEffect:
    assert target.layer is not None
    assert target.head is not None
    layer = target.layer
    stream = block.activation("clean", Site("resid_pre", layer))
    slots = slots_of(target)
    reads = [Site(slot, layer) for slot in slots] + [Site("z", layer)]  # type: ignore[arg-type]  # q, k, v are kinds
    changed = _run_layer(block, engine, layer, stream + delta, reads, [])
    found: dict[str, Tensor] = {"whole": changed[reads[-1]]}
    for slot, site in zip(slots, reads[:-1], strict=True):
        edit = Edit(site, changed[site])
        found[slot] = _run_layer(block, engine, layer, stream, [reads[-1]], [edit])[reads[-1]]
    metric = {name: _metric_of_head(block, engine, target, z) for name, z in found.items()}
    whole = metric.pop("whole")
    return EdgeEffect(source, target, whole, {slot: metric[slot] for slot in slots})


def _metric_of_head(
    block: Block, engine: Engine, target: Node, z: Float[Tensor, "pair pos head d_head"]
) -> Float[Tensor, "pair"]:
    """The metric with one head's z changed: added right behind the attention where the stream is a plain sum, else put in its place."""
    assert target.layer is not None
    assert target.head is not None
    info, can, layer = engine.backend.info, engine.backend.abilities, target.layer
    at_once = info.attn_only or info.parallel  # nothing of the layer reads what its heads say
    if not can.linear_heads or not (at_once or can.after_attention):
        return _metric_with(
            block, Site("z", layer), z, torch.arange(info.n_heads, device=z.device) == target.head
        )
    difference = (z - block.activation("clean", Site("z", layer)))[:, :, target.head]
    change = difference @ engine.backend.head_weights(layer)[target.head].to(difference.dtype)
    return _metric_after(block, engine, layer + 1 if at_once else layer, not at_once, change)


def _mlp_output(
    block: Block, engine: Engine, layer: int, delta: Tensor
) -> Float[Tensor, "pair pos d_model"]:
    """What an MLP says when `delta` is added to its input."""
    info, out = engine.backend.info, Site("mlp_out", layer)
    before = block.activation("clean", Site("resid_pre", layer))
    if info.parallel:
        return _run_layer(block, engine, layer, before + delta, [out], [])[out]
    heard = block.activation("clean", Site("resid_mid", layer)) + delta
    if engine.backend.abilities.after_attention:
        return _run_layer(block, engine, layer, heard, [out], [], middle=True)[out]
    return _run_layer(block, engine, layer, before, [out], [Edit(Site("resid_mid", layer), heard)])[
        out
    ]


def _run_layer(
    block: Block,
    engine: Engine,
    layer: int,
    residual: Tensor,
    reads: Sequence[Site],
    edits: Sequence[Edit],
    *,
    middle: bool = False,
) -> dict[Site, Tensor]:
    """One layer run on a changed residual stream, in batches."""
    backend, prompts = engine.backend, block.prompts
    found: dict[Site, list[Tensor]] = {site: [] for site in reads}
    size = max(1, block.rows_that_fit(0, prompts.width))
    one = row_macs(
        backend.info, prompts.width, start=layer, stop=layer + 1, after_attention=middle, columns=0
    )
    for first in range(0, len(prompts), size):
        part = slice(first, first + size)
        here = [Edit(edit.site, edit.value[part], edit.where, edit.operation) for edit in edits]
        batch = Batch(
            prompts.clean[part],
            None,
            start=layer,
            residual=residual[part],
            after_attention=middle,
            stop=layer + 1,
        )
        seen = block.run(batch, reads, here).activations
        for site in reads:
            found[site].append(seen[site])
        block.meter.add(
            sum(one / prompt_macs(backend.info, n) for n in prompts.length[part].tolist())
        )
    return {site: torch.cat(parts) for site, parts in found.items()}


def _metric_after(
    block: Block, engine: Engine, start: int, middle: bool, change: Tensor
) -> Float[Tensor, "pair"]:
    """The metric with `change` added to the clean residual stream at a start, and everything behind it running freely."""

    def residual(window: Window) -> Tensor:
        here = block.stream("clean", start, window, after_attention=middle)
        return here + change[window.pair, window.first : window.end]

    pair = torch.arange(len(block.prompts), device=change.device)
    return block.measure(
        Rows(
            "clean",
            pair,
            block.prompts.first_difference,
            start=start,
            after_attention=middle,
            residual=residual,
        )
    )


def _metric_with(
    block: Block, site: Site, value: Tensor, heads: Tensor | None = None
) -> Float[Tensor, "pair"]:
    """The metric with a site of the clean run replaced (in these heads of it)."""
    where = None if heads is None else heads.expand(1, 1, -1)  # [row pos head]
    pair = torch.arange(len(block.prompts), device=value.device)

    def edits(window: Window) -> list[Edit]:
        return [Edit(site, value[:, window.first : window.end], where, index=window.pair)]

    return block.measure(
        Rows("clean", pair, block.prompts.first_difference, start=site.layer, edits=edits)
    )


def _estimate_edge(block: Block, engine: Engine, target: Node) -> float:
    """Forward-pass equivalents of one edge into `target`, about."""
    info, n = engine.backend.info, len(block.prompts)
    if target == LOGITS or target.layer is None:
        return 0.0
    behind = (info.n_layers - target.layer) / info.n_layers
    runs = 4 if target.kind == "attention_head" else 1
    return n * runs * (behind + 1 / info.n_layers)
