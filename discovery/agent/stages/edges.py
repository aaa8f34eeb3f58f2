"""Stage 9 ("edges"): what the circuit's nodes send to each other, by path patching.

Edges enter no verdict. A circuit of n nodes has about n²/2 of them, so they are measured on
MAX_DESCRIPTION_PAIRS discovery pairs, and if all of them would cost more than
`max_description_cost`, only those with the largest first-order estimates are measured
(`methods.patching.edge_screening`). The record says how many there are and how many were measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from discovery.agent.context import RunContext
from discovery.agent.stages.position_sweeps import max_description_cost
from discovery.agent.state import State
from discovery.engine import Engine
from discovery.graph import CircuitEdge
from discovery.graph.base import mean_of
from discovery.methods.patching import (
    EdgeMetrics,
    edges_between,
    estimate_edge,
    estimate_edge_screen,
    measure_edges,
    screen_edges,
    select_edges,
)
from discovery.methods.statistics import Resamples, effect_with_interval
from discovery.sites import Node
from discovery.store import join_names

MAX_LISTED_EDGES = 8
EDGES_RESULT_ID = "edges"

Edge = tuple[Node, Node]


def describe_edges(state: State, context: RunContext) -> State:
    """Measure the edges among the circuit, embed and logits, on discovery pairs."""
    if not state.circuit:
        return context.finish_stage(state, "edges", {}, "no edges", "there is no circuit")
    engine = context.description_engine
    every_edge = edges_between(sorted(state.circuit_nodes), parallel=context.model.info.parallel)
    selected, chosen_by = _choose_edges(state, context, every_edge)
    effects = measure_edges(engine, selected)
    edges = _edges_with_intervals(engine, effects)
    context.save_arrays(
        EDGES_RESULT_ID,
        {"per_pair": torch.stack([edge.whole for edge in effects], 1)},
        {"edges": join_names(f"{edge.source}->{edge.target}" for edge in effects)},
    )
    counts = {
        "n_possible": len(every_edge),
        "n_measured": len(edges),
        "pairs": len(engine),
        "chosen_by": chosen_by,
    }
    by_size = sorted(edges, key=lambda edge: -abs(mean_of(edge.effect) or 0.0))
    largest = {
        f"{edge.source}->{edge.target}": mean_of(edge.effect) for edge in by_size[:MAX_LISTED_EDGES]
    }
    return context.finish_stage(
        state.with_changes(edges=tuple(edges), edge_counts=counts),
        "edges",
        largest | counts,
        f"{len(edges)} of {len(every_edge)} edges measured; largest: {', '.join(largest)}",
        "noising-normalised change of the metric, all inputs together, on "
        f"{len(engine)} pairs; edges are chosen by {chosen_by}",
    )


def _choose_edges(
    state: State, context: RunContext, every_edge: Sequence[Edge]
) -> tuple[list[Edge], str]:
    """Return the edges to measure, and how they were chosen."""
    engine = context.description_engine
    costs = {edge: estimate_edge(engine, edge[1]) for edge in every_edge}
    settings = context.settings
    max_cost = max_description_cost(context.model.info, context.universe, settings.budget)
    if settings.exhaustive or sum(costs.values()) <= max_cost:
        return list(every_edge), "nothing: all of them"
    nodes = sorted(state.circuit_nodes)
    if context.model.abilities.gradients:
        remaining_budget = max_cost - estimate_edge_screen(engine, nodes)
        edges = select_edges(screen_edges(engine, nodes), costs, remaining_budget)
        return edges, "first-order estimates"
    sizes = {
        name: abs(mean_of(effect.noising) or 0.0) + abs(mean_of(effect.denoising) or 0.0)
        for name, effect in state.effects.items()
    }
    # embed and logits have no effect of their own: such an edge counts as its other end.
    smaller = {
        edge: min((sizes[str(node)] for node in edge if str(node) in sizes), default=0.0)
        for edge in every_edge
    }
    return select_edges(smaller, costs, max_cost), "the smaller effect of their two nodes"


def _edges_with_intervals(engine: Engine, effects: Sequence[EdgeMetrics]) -> list[CircuitEdge]:
    clean = engine.baseline("clean")
    gap = clean - engine.baseline("corrupted")
    resamples = Resamples.of(engine.task)
    return [
        CircuitEdge(
            source=str(edge.source),
            target=str(edge.target),
            effect=effect_with_interval(clean - edge.whole, gap, resamples),
            inputs={
                slot: effect_with_interval(clean - values, gap, resamples)
                for slot, values in edge.inputs.items()
            },
            evidence=(EDGES_RESULT_ID,),
        )
        for edge in effects
    ]
