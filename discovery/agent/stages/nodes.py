"""Stage 2 ("heads"): the effect of every single head and MLP, and a ranking of all nodes by it.

Both directions are measured under resample ablation, and noising again under mean ablation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from discovery.agent.context import RunContext, join_names
from discovery.agent.state import State
from discovery.engine import Engine
from discovery.evaluation import (
    EffectsByNode,
    SplitEvaluator,
    combine_directions,
    measure_single_ablations,
    sort_by_effect,
    thresholds,
)
from discovery.graph import NodeEffect
from discovery.graph.base import mean_of
from discovery.methods.patching import (
    NodeEffects,
    measure_node_effects,
    node_effects_with_intervals,
)
from discovery.methods.statistics import Resamples
from discovery.sites import Node

MAX_LISTED_NODES = 10
RANKING_PAIRS = 16  # discovery pairs on which all nodes are measured


def rank_nodes(state: State, context: RunContext) -> State:
    """Rank the universe by |noising| + |denoising|: one direction alone misses an OR."""
    evaluator = context.evaluator("discovery").first(RANKING_PAIRS)
    noising, denoising = measure_both_directions(context, evaluator.engine, "nodes")
    by_mean = _measure_by_mean(context, evaluator, noising.nodes)
    by_node = add_intervals(evaluator.engine, noising, denoising)
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
        f"mean ablation if neither reaches {thresholds.MIN_DROP}; on {len(evaluator.engine)} pairs",
    )


def measure_both_directions(
    context: RunContext, engine: Engine, name: str, nodes: Collection[Node] | None = None
) -> tuple[NodeEffects, NodeEffects]:
    """Measure nodes alone in both directions, and keep the arrays.

    Args:
        context: the run.
        engine: the pairs.
        name: what the arrays are named after: `<name>-noising` and `<name>-denoising`.
        nodes: the nodes; None means the universe.

    Returns:
        The effects of noising, and of denoising.

    Raises:
        BudgetError: if the budget does not reach that far.
    """
    noising = measure_node_effects(engine, "noising", context.universe, nodes)
    denoising = measure_node_effects(engine, "denoising", context.universe, nodes)
    for effects in (noising, denoising):
        arrays = {
            "values": effects.values,
            "per_pair": effects.per_pair,
            "clean": engine.baseline("clean"),
            "corrupted": engine.baseline("corrupted"),
        }
        result_id = f"{name}-{effects.direction}"
        context.save_arrays(result_id, arrays, {"nodes": join_names(effects.nodes)})
    return noising, denoising


def add_intervals(
    engine: Engine, noising: NodeEffects, denoising: NodeEffects
) -> dict[str, NodeEffect]:
    """Return the effects of nodes with their intervals over the pairs of an engine."""
    return node_effects_with_intervals(
        noising,
        denoising,
        engine.baseline("clean"),
        engine.baseline("corrupted"),
        Resamples.of(engine.task),
    )


def _measure_by_mean(
    context: RunContext, evaluator: SplitEvaluator, nodes: Sequence[Node]
) -> EffectsByNode:
    """Measure what is lost with each node at its mean, and keep the arrays."""
    f = evaluator.f("mean")
    by_mean = measure_single_ablations(f, nodes, "nodes, mean ablation")
    context.save_arrays(
        "nodes-mean",
        {
            "effects": torch.tensor([noising for noising, _ in by_mean.values()]),
            "per_pair": f.set_metric([f.everything - {node} for node in by_mean]).T,
            "full": f.full,
            "empty": f.empty,
        },
        {"nodes": join_names(by_mean)},
    )
    return by_mean
