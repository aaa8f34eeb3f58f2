"""Stage 9: what the circuit's nodes tell each other, by path patching; edges enter no verdict."""

from __future__ import annotations

import torch

from discovery.agent.context import Context
from discovery.agent.stages.nodes import effect_of
from discovery.agent.state import State
from discovery.graph import CircuitEdge
from discovery.methods.patching.paths import edge_effects
from discovery.methods.statistics import Resamples

TOP = 8
RESULT = "edges"


def edges(state: State, context: Context) -> State:
    """Measure every edge among the circuit, embed and logits, on discovery pairs."""
    if not state.circuit:
        return context.finish(state, "edges", {}, "no edges", "there is no circuit")
    engine = context.bench("discovery").engine
    clean, corrupted = engine.baseline("clean"), engine.baseline("corrupted")
    resamples, gap = Resamples.of(engine.task), clean - corrupted
    found = edge_effects(engine, sorted(state.nodes))
    made = [
        CircuitEdge(
            source=str(edge.source),
            target=str(edge.target),
            effect=effect_of(clean - edge.whole, gap, resamples),
            inputs={slot: effect_of(clean - values, gap, resamples) for slot, values in edge.inputs.items()},
            evidence=(RESULT,),
        )
        for edge in found
    ]
    context.save(
        RESULT, {"per_pair": torch.stack([edge.whole for edge in found], 1)}, {"edges": ",".join(f"{e.source}->{e.target}" for e in found)}
    )
    largest = sorted(made, key=lambda edge: -abs((edge.effect and edge.effect.mean) or 0.0))[:TOP]
    measured = {f"{edge.source}->{edge.target}": edge.effect and edge.effect.mean for edge in largest}
    return context.finish(
        state.with_(edges=tuple(made)),
        "edges",
        measured,
        f"largest: {', '.join(measured)}",
        "noising-normalised change of the metric, all inputs together",
    )
