"""Stage 4 ("heads"): the effect of every single head and MLP, and a ranking of all nodes by it.

Both directions are measured under resample ablation, and both again under mean ablation.
"""

from __future__ import annotations

import torch

from discovery.agent.context import RunContext, join_names
from discovery.agent.state import State
from discovery.evaluation import (
    combine_directions,
    measure_single_nodes,
    sort_by_effect,
    thresholds,
)
from discovery.graph.base import mean_of
from discovery.methods.patching import measure_node_effects, node_effects_with_intervals
from discovery.methods.statistics import Resamples

MAX_LISTED_NODES = 10


def rank_nodes(state: State, context: RunContext) -> State:
    """Rank the universe by |noising| + |denoising|: one direction alone misses an OR."""
    evaluator = context.evaluator("discovery")
    engine = evaluator.engine
    noising = measure_node_effects(engine, "noising", context.universe)
    denoising = measure_node_effects(engine, "denoising", context.universe)
    clean = engine.baseline("clean")
    corrupted = engine.baseline("corrupted")
    for effects in (noising, denoising):
        arrays = {"values": effects.values, "per_pair": effects.per_pair}
        nodes = {"nodes": join_names(effects.nodes)}
        context.save_arrays(f"nodes-{effects.direction}", arrays, nodes)
    by_mean = measure_single_nodes(evaluator.f("mean"), noising.nodes, "nodes, mean ablation")
    context.save_set_metrics()
    context.save_arrays(
        "nodes-mean",
        {"effects": torch.tensor(list(by_mean.values()))},
        {"nodes": join_names(by_mean)},
    )
    resamples = Resamples.of(engine.task)
    by_node = node_effects_with_intervals(noising, denoising, clean, corrupted, resamples)
    ranking = sort_by_effect(combine_directions(noising, denoising), by_mean)
    names = [str(node) for node in ranking]
    measured = {
        name: {
            "noising": mean_of(by_node[name].noising),
            "denoising": mean_of(by_node[name].denoising),
        }
        for name in names[:MAX_LISTED_NODES]
    }
    return context.finish_stage(
        state.with_changes(
            ranking=tuple(names),
            effects=by_node,
            evidence=dict.fromkeys(names, ("nodes-noising", "nodes-denoising", "nodes-mean")),
        ),
        "heads",
        measured,
        f"largest effects: {', '.join(node.label for node in ranking[:MAX_LISTED_NODES])}",
        "|noising| + |denoising| of each node alone, at all positions, by resample ablation; by "
        f"mean ablation if neither reaches {thresholds.MIN_DROP}",
    )
