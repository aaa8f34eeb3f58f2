"""A first-order estimate of every edge among some nodes, for the price of few passes.

A circuit of n nodes has about n²/2 edges, and path patching runs the model behind the target again
for each input of each edge. The estimate needs one layer for each source and target layer: the
target's layer is run on the clean stream plus the source's change, s corrupted − s clean, which
gives the target's new output exactly. What the metric makes of that output is linear: its change
times the gradient of the metric there, averaged over runs whose embedding lies between those of
the two prompts, as in `engine.gradients`. Estimates choose which edges are measured, and are never
reported as measurements.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor

from discovery.engine import Block, Engine, average_gradients, estimate_attributions
from discovery.engine.cost import forward_equivalents, row_macs
from discovery.methods.patching.edges import (
    compute_output_change,
    edges_between,
    measure_edge,
    run_heads,
    run_mlp,
)
from discovery.sites import LOGITS, Node, Site, output_site

Edge = tuple[Node, Node]
"""The source and the target."""


def screen_edges(engine: Engine, nodes: Iterable[Node]) -> dict[Edge, float]:
    """Estimate the noising effect of every edge among these nodes, embed and logits.

    Args:
        engine: the model, which must give gradients, and the pairs.
        nodes: the nodes.

    Returns:
        For each edge, the estimated change of the metric divided by m(clean) − m(corrupted), means
        over the pairs first. Edges into the logits are measured exactly, since that costs nothing.

    Raises:
        BudgetError: if the meter's budget does not suffice.
        MeasurementError: if the model gives no gradients.
    """
    edges = edges_between(nodes, parallel=engine.backend.info.parallel)
    changes: dict[Edge, float] = defaultdict(float)
    gap = 0.0
    for _, block in engine.blocks():
        block.meter.begin("edge screen", _estimate_block(block, edges))
        for edge, change in _screen_block(block, engine, edges).items():
            changes[edge] += float(change.double().sum())
        gap += float((block.baseline("clean") - block.baseline("corrupted")).double().sum())
    return {edge: -changes[edge] / gap for edge in edges}


def estimate_edge_screen(engine: Engine, nodes: Iterable[Node]) -> float:
    """Return the forward-pass equivalents that `screen_edges` counts beyond cached passes."""
    edges = edges_between(nodes, parallel=engine.backend.info.parallel)
    return sum(_estimate_block(block, edges) for _, block in engine.blocks())


def _estimate_block(block: Block, edges: Iterable[Edge]) -> float:
    runs = {
        (source, target.layer, target.kind) for source, target in edges if target.layer is not None
    }
    info = block.backend.info
    macs = row_macs(info, block.prompts.width, start=0, stop=1, columns=0)
    one_layer = forward_equivalents(info, macs, block.prompts.length.tolist())
    return estimate_attributions(block) + len(runs) * one_layer


def _screen_block(
    block: Block, engine: Engine, edges: Iterable[Edge]
) -> dict[Edge, Float[Tensor, "pair"]]:
    """Estimate how each edge changes the metric of each pair of a block."""
    targets_by_source: dict[Node, list[Node]] = defaultdict(list)
    for source, target in edges:
        targets_by_source[source].append(target)
    sites = {output_site(target) for _, target in edges if target != LOGITS}
    gradients = average_gradients(block, "clean", sorted(sites))
    changes: dict[Edge, Tensor] = {}
    for source, targets in targets_by_source.items():
        delta = compute_output_change(block, engine, source)
        outputs: dict[Site, Tensor] = {}
        for target in targets:
            if target == LOGITS:
                exact = measure_edge(block, engine, source, target, delta)
                changes[source, target] = exact.whole - block.baseline("clean")
                continue
            site = output_site(target)
            if site not in outputs:
                run = run_mlp if target.kind == "mlp" else run_heads
                outputs[site] = run(block, engine, site.layer, delta) - block.activation(
                    "clean", site
                )
            change = outputs[site] * gradients[site]
            if target.head is not None:
                change = change[:, :, target.head]
            changes[source, target] = change.float().sum((1, 2))
    return changes


def select_edges(
    estimates: dict[Edge, float], costs: dict[Edge, float], max_cost: float
) -> list[Edge]:
    """Return the edges with the largest estimates that can be measured within a cost.

    Args:
        estimates: for each edge, how large its effect may be.
        costs: for each edge, what measuring it costs.
        max_cost: what all of them may cost together.

    Returns:
        The edges in the order of `costs`. Edges that cost nothing are always among them.
    """
    by_size = sorted(estimates, key=lambda edge: -abs(estimates[edge]))
    total = 0.0
    selected = set()
    for edge in by_size:
        if costs[edge] and total + costs[edge] > max_cost:
            continue
        total += costs[edge]
        selected.add(edge)
    return [edge for edge in costs if edge in selected]
