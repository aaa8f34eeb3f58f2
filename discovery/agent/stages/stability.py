"""Stage 8: would other pairs have chosen the same nodes? (condition f)

The whole selection, from ranking to mending, is repeated on bootstrap resamples of the discovery pairs. Every set is measured per
pair and kept, so a resample costs new passes only where it looks at a set that has not been looked at; these may take 30% of
the run, which is why the held-out pairs are measured before it. Searches that do not end within it count neither for nor against:
where they could decide (f), it is not run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.agent.context import RunContext
from discovery.agent.search.fit import choose_start, find_smallest_size
from discovery.agent.search.mend import STOPPED_BY_BUDGET
from discovery.agent.search.rivals import search_circuit
from discovery.agent.stages.verdict import add_verdict
from discovery.agent.state import State
from discovery.engine import SIDES, base_side
from discovery.errors import BudgetError
from discovery.evaluation import (
    ResampledFaithfulness,
    combine_directions,
    measure_single_nodes,
    sort_by_effect,
    thresholds,
)
from discovery.methods.ablation import NodeSet
from discovery.methods.patching import NodeEffects, effect_change
from discovery.methods.statistics import draw_bootstrap_weights
from discovery.sites import Direction, Node

STABILITY_BUDGET_SHARE = 0.3  # of the run's cost


def measure_stability(state: State, context: RunContext) -> State:
    """Mean Jaccard of the resamples' circuits with this one, and how often each node was chosen."""
    if not state.circuit:
        return context.finish_stage(
            state, "stability", {}, "nothing to repeat", "there is no circuit"
        )
    bench = context.evaluator("discovery")
    weights = draw_bootstrap_weights(
        bench.engine.task, thresholds.STABILITY_RESAMPLES, context.seed + 1
    )
    for f in bench.f_by_ablation.values():
        f.set_metric.fill_cache()  # what a resumed run caches again is not the resamples' work
    for side in SIDES:
        bench.engine.baseline(side)
    before = context.meter.spent
    found = _repeat_search(
        context,
        weights,
        before + state.spent * STABILITY_BUDGET_SHARE / (1 - STABILITY_BUDGET_SHARE),
    )
    own = state.circuit_nodes
    jaccard = [len(own & made) / len(own | made) for made, _ in found]
    cut = [why is not None for _, why in found]
    ended = [
        made for made, why in found if why is None
    ]  # where the others would have ended, nobody knows
    frequency = (
        {
            str(node): sum(node in made for made in ended) / len(ended)
            for node in sorted(own.union(*ended))
        }
        if ended
        else {}
    )
    mean = decidable_mean(jaccard, cut)
    measured = {
        "jaccard": jaccard,
        "cut": cut,
        "mean": mean,
        "inclusion": frequency,
        "forward_equivalents": context.meter.spent - before,
    }
    why = f"mean Jaccard with the circuits selected on {len(found)} bootstrap resamples of the discovery pairs"
    if any(cut):
        why += f"; {sum(cut)} searches ended where their share of the budget was spent ({STABILITY_BUDGET_SHARE:.0%} of the run)"
    state = add_verdict(
        state.with_changes(stability=mean, cut_searches=sum(cut), inclusion=frequency)
    )
    concluded = (
        f"{'not known' if mean is None else f'mean Jaccard {mean:.2f}'}; verdict: {state.verdict}"
    )
    return context.finish_stage(
        state, "stability", measured, concluded, "; ".join((why, *state.reasons))
    )


def _repeat_search(
    context: RunContext, weights: Float[Tensor, "draw pair"], allowed: float
) -> list[tuple[NodeSet, str | None]]:
    """Every resample's selection: each in turn gets an equal part of the work, so that a long one does not stop the short ones.

    What they leave goes to those that were cut off, which go on where they stopped, since sets once measured cost nothing; in fewer
    and larger parts where an equal part is too small for the next thing that a search measures.
    """
    meter, found = context.meter, dict[int, tuple[NodeSet, str | None]]()
    limit, waiting, parts = meter.limit, list(range(len(weights))), len(weights)
    most = allowed if limit is None else min(limit, allowed)
    try:
        while waiting and parts:
            began = meter.spent
            for number in waiting:
                meter.limit = min(most, meter.spent + (most - began) / parts)
                found[number] = _search_resample(context, weights[number])
            waiting = [number for number in waiting if found[number][1] is not None]
            parts = min(parts // 2 if meter.spent == began else parts, len(waiting))
    finally:
        meter.limit = limit
    return [found[number] for number in range(len(weights))]


def decidable_mean(jaccard: Sequence[float], cut: Sequence[bool]) -> float | None:
    """The mean Jaccard that is certain enough to judge by: a search that was cut off might have ended anywhere.

    With every such search at 0 the mean is still high enough: that low bound. With every such search at 1 it is still too low:
    that high bound. Otherwise None: nobody knows.
    """
    total = sum(value for value, ended in zip(jaccard, cut, strict=True) if not ended)
    low, high = total / len(jaccard), (total + sum(cut)) / len(jaccard)
    if low >= thresholds.MIN_JACCARD:
        return low
    return high if high < thresholds.MIN_JACCARD else None


def _search_resample(context: RunContext, draw: Tensor) -> tuple[NodeSet, str | None]:
    """The selection on one resample, and why it was cut off, if it was."""
    both = {
        ablation: ResampledFaithfulness(f, draw)
        for ablation, f in context.evaluator("discovery").f_by_ablation.items()
    }
    engine = context.evaluator("discovery").engine
    gap = (engine.baseline("clean") - engine.baseline("corrupted")).double().cpu() @ draw
    effects = [
        _resampled_effects(context, direction, draw, gap) for direction in ("noising", "denoising")
    ]
    try:
        by_mean = measure_single_nodes(
            both["mean"], effects[0].nodes, "nodes, mean ablation"
        )  # of an older run that is resumed they are not kept
    except BudgetError as spent:
        return frozenset(), spent.cause
    ranking, cut = sort_by_effect(combine_directions(*effects), by_mean), list[str]()

    def say(measured: dict[str, object], concluded: str, why: str) -> None:
        if concluded == STOPPED_BY_BUDGET:
            cut.append(why)

    size = find_smallest_size(both, ranking, lambda spent: cut.append(spent.cause))
    return search_circuit(both, choose_start(size, ranking), ranking, context.seed, say), cut[
        0
    ] if cut else None


def _resampled_effects(
    context: RunContext, direction: Direction, draw: Tensor, gap: Tensor
) -> NodeEffects:
    """Single-node effects, from the stored per-pair measurements."""
    name = f"nodes-{direction}"
    per_pair = torch.from_numpy(context.run.load_arrays(name)["per_pair"]).double()
    nodes = tuple(Node.parse(node) for node in context.run.array_metadata(name)["nodes"].split(","))
    engine = context.evaluator("discovery").engine
    base = engine.baseline(base_side(direction)).double().cpu() @ draw
    patched = per_pair.T @ draw
    values = effect_change(patched, base, direction) / gap
    return NodeEffects(direction, nodes, per_pair, values)
