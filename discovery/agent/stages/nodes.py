"""Stage 4: the effect of every single head and MLP, in both directions and under both ablations."""

from __future__ import annotations

import torch

from discovery.agent.context import RunContext
from discovery.agent.state import State
from discovery.evaluation import combine_directions, measure_single_nodes, sort_by_effect
from discovery.graph import Effect
from discovery.methods.patching import measure_node_effects, node_effects_with_intervals
from discovery.methods.statistics import Resamples

MAX_LISTED_NODES = 10


def rank_nodes(state: State, context: RunContext) -> State:
    """Rank the universe by effect, noising and denoising combined: one direction alone misses an OR."""
    bench = context.evaluator("discovery")
    noising, denoising = (
        measure_node_effects(bench.engine, direction, context.universe)
        for direction in ("noising", "denoising")
    )
    clean, corrupted = bench.engine.baseline("clean"), bench.engine.baseline("corrupted")
    for found in (noising, denoising):
        context.save_arrays(
            f"nodes-{found.direction}",
            {"values": found.values, "per_pair": found.per_pair},
            {"nodes": ",".join(map(str, found.nodes))},
        )
    by_mean = measure_single_nodes(bench.f("mean"), noising.nodes, "nodes, mean ablation")
    context.save_set_metrics()
    context.save_arrays(
        "nodes-mean",
        {"effects": torch.tensor(list(by_mean.values()))},
        {"nodes": ",".join(map(str, by_mean))},
    )
    resamples = Resamples.of(bench.engine.task)
    effects = node_effects_with_intervals(noising, denoising, clean, corrupted, resamples)
    order = sort_by_effect(combine_directions(noising, denoising), by_mean)
    names = [str(node) for node in order]
    measured = {
        name: {"noising": _mean(effects[name].noising), "denoising": _mean(effects[name].denoising)}
        for name in names[:MAX_LISTED_NODES]
    }
    return context.finish_stage(
        state.with_changes(
            ranking=tuple(names),
            effects=effects,
            evidence=dict.fromkeys(names, ("nodes-noising", "nodes-denoising", "nodes-mean")),
        ),
        "heads",
        measured,
        f"largest effects: {', '.join(node.label for node in order[:MAX_LISTED_NODES])}",
        "|noising| + |denoising| of each node alone, at all positions, by resample ablation; by mean ablation where neither reaches 0.02",
    )


def _mean(effect: Effect | None) -> float | None:
    return effect.mean if effect else None
