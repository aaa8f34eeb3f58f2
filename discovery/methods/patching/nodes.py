"""What patching each single node does, over the whole universe, at all positions.

This is the quantity of a `head_out` sweep, with the MLPs beside the heads: one number per pair and
node. It ranks nodes and gives no verdict: a node of an OR gate changes nothing alone in one of the
directions, and a node with a hidden backup changes nothing in either.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.engine import Block, Engine, Rows, Side, Window, base_side, other_side
from discovery.graph import NodeEffect
from discovery.interventions import Edit
from discovery.methods.patching.cells import build_all_cells
from discovery.methods.patching.grid import effect_change, normalise
from discovery.methods.statistics import Resamples, effect_with_interval
from discovery.sites import Direction, Node, Site, Universe, head, mlp

NOT_PATCHED = -1  # the column of a node that is not to be patched


@dataclass(frozen=True)
class NodeEffects:
    """The effects of single nodes in one direction.

    Attributes:
        direction: denoising or noising.
        nodes: the nodes, in forward order.
        per_pair: the raw metric with each node patched, [pair node].
        values: the normalised effects (see `methods.patching.grid`), [node].
    """

    direction: Direction
    nodes: tuple[Node, ...]
    per_pair: Float[Tensor, "pair node"]
    values: Float[Tensor, "node"]


@dataclass(frozen=True)
class _NodeJob:
    """Rows to measure, with the pair of each and the column of its node."""

    rows: Rows
    pair: Int[Tensor, "row"]
    column: Int[Tensor, "row"]


def measure_node_effects(
    engine: Engine,
    direction: Direction,
    universe: Universe = "all",
    nodes: Collection[Node] | None = None,
) -> NodeEffects:
    """Patch nodes, one at a time, at all positions, in every pair.

    Args:
        engine: the model and the pairs.
        direction: denoising or noising.
        universe: the nodes to patch.
        nodes: patch only these of the universe; None means all of it.

    Raises:
        BudgetError: if the meter's budget does not suffice for a block of pairs.
    """
    in_universe = engine.backend.info.nodes(universe)
    nodes = tuple(node for node in in_universe if nodes is None or node in nodes)
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
    """Return the forward-pass equivalents of `measure_node_effects` beyond cached passes."""
    nodes = engine.backend.info.nodes(universe)
    return sum(
        block.estimate(*(job.rows for job in _jobs(block, engine, direction, nodes)))
        for _, block in engine.blocks()
    )


def node_effects_with_intervals(
    noising: NodeEffects,
    denoising: NodeEffects,
    clean: Float[Tensor, "pair"],
    corrupted: Float[Tensor, "pair"],
    resamples: Resamples,
) -> dict[str, NodeEffect]:
    """Return the effect of each node in both directions, with 95% intervals, by node name.

    Args:
        noising: the effects in one direction.
        denoising: the effects of the same nodes in the other direction.
        clean: the metric of the clean runs.
        corrupted: the metric of the corrupted runs.
        resamples: draws of the same pairs.
    """
    gap = clean - corrupted
    effects = {}
    for number, node in enumerate(noising.nodes):
        noising_change = effect_change(noising.per_pair[:, number], clean, "noising")
        denoising_change = effect_change(denoising.per_pair[:, number], corrupted, "denoising")
        effects[str(node)] = NodeEffect(
            noising=effect_with_interval(noising_change, gap, resamples),
            denoising=effect_with_interval(denoising_change, gap, resamples),
        )
    return effects


def _measure_block(
    first: int, block: Block, engine: Engine, direction: Direction, nodes: tuple[Node, ...]
) -> Float[Tensor, "pair node"]:
    metric = block.baseline(base_side(direction)).unsqueeze(1).repeat(1, len(nodes))
    jobs = _jobs(block, engine, direction, nodes)
    all_rows = [job.rows for job in jobs]
    block.meter.begin(
        engine.block_label(f"nodes {direction}", first, block), block.estimate(*all_rows)
    )
    for job, measured in zip(jobs, block.measure_all(all_rows), strict=True):
        metric[job.pair, job.column] = measured
    return metric


def _jobs(
    block: Block, engine: Engine, direction: Direction, nodes: tuple[Node, ...]
) -> list[_NodeJob]:
    """List the rows of every layer's heads, then of its MLP; jobs without rows are left out."""
    info = engine.backend.info
    base = base_side(direction)
    column = {node: number for number, node in enumerate(nodes)}
    jobs: list[_NodeJob] = []
    layers = build_all_cells(block, engine.backend, "head_out", direction, ())
    for layer, cells in enumerate(layers):
        pair, heads = cells.index
        column_of_head = torch.tensor(
            [column.get(head(layer, h), NOT_PATCHED) for h in range(info.n_heads)],
            device=pair.device,
        )
        jobs.append(_choose_columns(cells.rows, pair, column_of_head[heads]))
        if mlp(layer) in column:
            rows = _mlp_rows(block, engine, layer, base)
            columns = torch.full_like(rows.pair, column[mlp(layer)])
            jobs.append(_NodeJob(rows, rows.pair, columns))
    return [job for job in jobs if len(job.rows)]


def _choose_columns(rows: Rows, pair: Int[Tensor, "row"], column: Int[Tensor, "row"]) -> _NodeJob:
    """Leave out the rows of heads that are not to be patched."""
    wanted = (column != NOT_PATCHED).nonzero(as_tuple=True)[0]
    if len(wanted) == len(column):
        return _NodeJob(rows, pair, column)
    return _NodeJob(rows.take(wanted), pair[wanted], column[wanted])


def _mlp_rows(block: Block, engine: Engine, layer: int, base: Side) -> Rows:
    """Exchange the whole output of an MLP.

    The difference is added right behind the MLP if the residual stream is a plain sum; otherwise
    the output is edited in its layer.
    """
    site = Site("mlp_out", layer)
    before = block.activation(base, site)
    after = block.activation(other_side(base), site)
    positions = torch.arange(before.shape[1], device=before.device)
    inside = (positions < block.prompts.length.unsqueeze(1)) & (
        positions >= block.prompts.first_difference.unsqueeze(1)
    )
    pair = ((before != after).any(-1) & inside).any(1).nonzero(as_tuple=True)[0]
    first = block.prompts.first_difference[pair]

    def edits(window: Window) -> list[Edit]:
        return [Edit(site, after[:, window.first : window.end], index=window.pair)]

    def residual(window: Window) -> Tensor:
        unchanged = block.stream(base, layer + 1, window)
        span = slice(window.first, window.end)
        return unchanged + after[window.pair, span] - before[window.pair, span]

    if not engine.backend.abilities.linear_heads:
        return Rows(base=base, pair=pair, first=first, start=layer, edits=edits)
    return Rows(base=base, pair=pair, first=first, start=layer + 1, residual=residual)
