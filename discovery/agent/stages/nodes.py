"""Stage 2 ("heads"): the effect of every single head and MLP, and a ranking of all nodes by it.

Both directions are measured under resample ablation, and noising again under mean ablation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from discovery.agent.context import RunContext
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
from discovery.store import join_names

MAX_LISTED_NODES = 10
RANKING_PAIRS = 16  # discovery pairs on which all nodes are measured


def rank_nodes(state: State, context: RunContext) -> State:
    """Rank the universe by |noising| + |denoising|: one direction alone misses an OR."""
    evaluator = context.evaluator("discovery").first(RANKING_PAIRS)
    noising, denoising = measure_both_directions(context, evaluator.engine, "nodes")
    by_resample = combine_directions(noising, denoising)
    state = state.with_changes(effects=add_intervals(evaluator.engine, noising, denoising))
    why = (
        "|noising| + |denoising| of each node alone, at all positions, on "
        f"{len(evaluator.engine)} pairs, by resample ablation"
    )
    first = sort_by_effect(by_resample)
    context.write_preview(
        _add_ranking(state, first, ("nodes-noising", "nodes-denoising")),
        "heads",
        _describe_largest(state, first),
        f"largest effects until now: {_list_largest(first)}",
        f"{why}; mean ablation is still to come",
    )
    ranking = sort_by_effect(by_resample, _measure_by_mean(context, evaluator, noising.nodes))
    return context.finish_stage(
        _add_ranking(state, ranking, ("nodes-noising", "nodes-denoising", "nodes-mean")),
        "heads",
        _describe_largest(state, ranking),
        f"largest effects: {_list_largest(ranking)}",
        f"{why}; by mean ablation if neither reaches {thresholds.MIN_DROP}",
    )


def _add_ranking(state: State, ranking: Sequence[Node], evidence: tuple[str, ...]) -> State:
    names = tuple(str(node) for node in ranking)
    return state.with_changes(ranking=names, evidence=dict.fromkeys(names, evidence))


def _describe_largest(state: State, ranking: Sequence[Node]) -> dict[str, dict[str, float | None]]:
    """Return both effects of the first nodes of a ranking."""
    effects = {str(node): state.effects[str(node)] for node in ranking[:MAX_LISTED_NODES]}
    return {
        name: {"noising": mean_of(effect.noising), "denoising": mean_of(effect.denoising)}
        for name, effect in effects.items()
    }


def _list_largest(ranking: Sequence[Node]) -> str:
    return ", ".join(node.label for node in ranking[:MAX_LISTED_NODES])


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
