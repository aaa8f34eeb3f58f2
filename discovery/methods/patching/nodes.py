"""What patching each single node does, over the whole universe, at all positions.

The same quantity as a `head_out` sweep, with the MLPs beside the heads: one number per pair and node. A screen, not a
verdict: a node of an OR gate moves nothing alone in one of the directions, hidden backups in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.engine import Block, Engine, Rows, Side, Window
from discovery.interventions import Edit
from discovery.methods.patching.cells import build_cells
from discovery.methods.patching.sweep import normalise
from discovery.sites import Direction, Node, Site, Universe, head, mlp


@dataclass(frozen=True)
class NodeEffects:
    """Effects of single nodes in one direction.

    Attributes:
        nodes: in forward order.
        per_pair: the raw metric with each node patched, [pair node].
        values: normalised as in `methods.patching`, [node].
    """

    direction: Direction
    nodes: tuple[Node, ...]
    per_pair: Float[Tensor, "pair node"]
    values: Float[Tensor, "node"]


def measure_node_effects(
    engine: Engine, direction: Direction, universe: Universe = "all"
) -> NodeEffects:
    """Patch every node of the universe, one at a time, at all positions, in every pair."""
    info = engine.backend.info
    nodes = info.nodes(universe)
    parts = [
        _measure_block(first, block, engine, direction, nodes) for first, block in engine.blocks()
    ]
    per_pair = torch.cat(parts)
    values, _ = normalise(
        per_pair, engine.baseline("clean"), engine.baseline("corrupted"), direction
    )
    return NodeEffects(direction, nodes, per_pair, values)


def estimate_node_effects(
    engine: Engine, direction: Direction, universe: Universe = "all"
) -> float:
    """Forward-pass equivalents that the rows of `measure_node_effects` will cost beyond the cached passes."""
    nodes = engine.backend.info.nodes(universe)
    return sum(
        block.estimate(*(rows for rows, _, _ in _jobs(block, engine, direction, nodes)))
        for _, block in engine.blocks()
    )


def _measure_block(
    first: int, block: Block, engine: Engine, direction: Direction, nodes: tuple[Node, ...]
) -> Float[Tensor, "pair node"]:
    base: Side = "corrupted" if direction == "denoising" else "clean"
    out = block.baseline(base).unsqueeze(1).repeat(1, len(nodes))
    jobs = _jobs(block, engine, direction, nodes)
    block.meter.begin(
        engine.block_label(f"nodes {direction}", first, block),
        block.estimate(*(rows for rows, _, _ in jobs)),
    )
    for (_, pair, place), found in zip(
        jobs, block.measure_all([rows for rows, _, _ in jobs]), strict=True
    ):
        out[pair, place] = found
    return out


def _jobs(
    block: Block, engine: Engine, direction: Direction, nodes: tuple[Node, ...]
) -> list[tuple[Rows, Tensor, Tensor]]:
    """Rows, and of each its pair and its node's column."""
    base: Side = "corrupted" if direction == "denoising" else "clean"
    column = {node: n for n, node in enumerate(nodes)}
    jobs: list[tuple[Rows, Tensor, Tensor]] = []
    for layer in range(engine.backend.info.n_layers):
        cells = build_cells(block, engine.backend, "head_out", layer, direction, ())
        pair, heads = cells.index
        where = torch.tensor(
            [column[head(layer, h)] for h in range(engine.backend.info.n_heads)], device=pair.device
        )
        jobs.append((cells.rows, pair, where[heads]))
        if mlp(layer) in column:
            rows = _mlp_rows(block, engine, layer, base)
            jobs.append((rows, rows.pair, torch.full_like(rows.pair, column[mlp(layer)])))
    return [job for job in jobs if len(job[0])]


def _mlp_rows(block: Block, engine: Engine, layer: int, base: Side) -> Rows:
    """An MLP's whole output exchanged: added right behind it where the stream is a plain sum, else edited in place."""
    site = Site("mlp_out", layer)
    before, after = (
        block.activation(base, site),
        block.activation("clean" if base == "corrupted" else "corrupted", site),
    )
    positions = torch.arange(before.shape[1], device=before.device)
    inside = (positions < block.prompts.length.unsqueeze(1)) & (
        positions >= block.prompts.first_difference.unsqueeze(1)
    )
    pair = ((before != after).any(-1) & inside).any(1).nonzero(as_tuple=True)[0]
    first = block.prompts.first_difference[pair]
    if not engine.backend.abilities.linear_heads:
        return Rows(
            base,
            pair,
            first,
            start=layer,
            edits=lambda w: [Edit(site, after[:, w.first : w.end], index=w.pair)],
        )

    def residual(window: Window) -> Tensor:
        here = block.residual(base, layer + 1, window)
        assert here is not None
        span = slice(window.first, window.end)
        return here + after[window.pair, span] - before[window.pair, span]

    return Rows(base, pair, first, start=layer + 1, residual=residual)
