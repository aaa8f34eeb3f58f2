"""Stage 9 ("edges"): what the circuit's nodes send to each other, by path patching.

Edges enter no verdict.
"""

from __future__ import annotations

import torch

from discovery.agent.context import RunContext, join_names
from discovery.agent.state import State
from discovery.graph import CircuitEdge
from discovery.graph.base import mean_of
from discovery.methods.patching import measure_edge_effects
from discovery.methods.statistics import Resamples, effect_with_interval

MAX_LISTED_EDGES = 8
RESULT_ID = "edges"


def measure_edges(state: State, context: RunContext) -> State:
    """Measure every edge among the circuit, embed and logits, on discovery pairs."""
    if not state.circuit:
        return context.finish_stage(state, "edges", {}, "no edges", "there is no circuit")
    engine = context.evaluator("discovery").engine
    clean = engine.baseline("clean")
    corrupted = engine.baseline("corrupted")
    resamples = Resamples.of(engine.task)
    gap = clean - corrupted
    effects = measure_edge_effects(engine, sorted(state.circuit_nodes))
    edges = [
        CircuitEdge(
            source=str(edge.source),
            target=str(edge.target),
            effect=effect_with_interval(clean - edge.whole, gap, resamples),
            inputs={
                slot: effect_with_interval(clean - values, gap, resamples)
                for slot, values in edge.inputs.items()
            },
            evidence=(RESULT_ID,),
        )
        for edge in effects
    ]
    context.save_arrays(
        RESULT_ID,
        {"per_pair": torch.stack([edge.whole for edge in effects], 1)},
        {"edges": join_names(f"{edge.source}->{edge.target}" for edge in effects)},
    )
    by_size = sorted(edges, key=lambda edge: -abs(mean_of(edge.effect) or 0.0))
    measured = {
        f"{edge.source}->{edge.target}": mean_of(edge.effect) for edge in by_size[:MAX_LISTED_EDGES]
    }
    return context.finish_stage(
        state.with_changes(edges=tuple(edges)),
        "edges",
        measured,
        f"largest: {', '.join(measured)}",
        "noising-normalised change of the metric, all inputs together",
    )
