"""Stage 9: what the circuit's nodes tell each other, by path patching; edges enter no verdict."""

from __future__ import annotations

import torch

from discovery.agent.context import RunContext
from discovery.agent.state import State
from discovery.graph import CircuitEdge
from discovery.methods.patching import measure_edge_effects
from discovery.methods.statistics import Resamples, effect_with_interval

MAX_LISTED_EDGES = 8
RESULT_ID = "edges"


def measure_edges(state: State, context: RunContext) -> State:
    """Measure every edge among the circuit, embed and logits, on discovery pairs."""
    if not state.circuit:
        return context.finish_stage(state, "edges", {}, "no edges", "there is no circuit")
    engine = context.evaluator("discovery").engine
    clean, corrupted = engine.baseline("clean"), engine.baseline("corrupted")
    resamples, gap = Resamples.of(engine.task), clean - corrupted
    found = measure_edge_effects(engine, sorted(state.circuit_nodes))
    made = [
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
        for edge in found
    ]
    context.save_arrays(
        RESULT_ID,
        {"per_pair": torch.stack([edge.whole for edge in found], 1)},
        {"edges": ",".join(f"{e.source}->{e.target}" for e in found)},
    )
    largest = sorted(made, key=lambda edge: -abs((edge.effect and edge.effect.mean) or 0.0))[
        :MAX_LISTED_EDGES
    ]
    measured = {
        f"{edge.source}->{edge.target}": edge.effect and edge.effect.mean for edge in largest
    }
    return context.finish_stage(
        state.with_changes(edges=tuple(made)),
        "edges",
        measured,
        f"largest: {', '.join(measured)}",
        "noising-normalised change of the metric, all inputs together",
    )
