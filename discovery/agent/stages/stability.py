"""Stage 8 ("stability"): would other pairs have led to the same nodes? (condition f)

The whole search, from ranking to mending, is repeated on bootstrap resamples of the discovery
pairs. The metric of each set is kept for every pair, so a resample costs new passes only for sets
that no search has measured yet. These passes may take 30% of the run, and the held-out pairs are
measured before them. A search that does not end within its share counts neither for nor against
the circuit; if such searches could decide (f), then (f) is recorded as not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.agent.context import RunContext, split_names
from discovery.agent.search.decision import Decision
from discovery.agent.search.fit import choose_start, find_smallest_size
from discovery.agent.search.search_circuit import search_circuit
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
from discovery.graph import EvidenceAblation
from discovery.methods.ablation import NodeSet
from discovery.methods.patching import NodeEffects, effect_change
from discovery.methods.statistics import draw_bootstrap_weights
from discovery.sites import Direction, Node

STABILITY_BUDGET_SHARE = 0.3  # of the run's cost


@dataclass(frozen=True)
class ResampleSearch:
    """The outcome of the search on one resample.

    Attributes:
        circuit: The best set that the search reached.
        cut_off: Why the search was cut off; None if it ended by itself.
    """

    circuit: NodeSet
    cut_off: str | None = None


def measure_stability(state: State, context: RunContext) -> State:
    """Compare the circuits of the resamples with this one, and decide (f)."""
    if not state.circuit:
        return context.finish_stage(
            state, "stability", {}, "nothing to repeat", "there is no circuit"
        )
    evaluator = context.evaluator("discovery")
    weights = draw_bootstrap_weights(
        evaluator.engine.task, thresholds.STABILITY_RESAMPLES, context.seed + 1
    )
    # In a resumed run the caches are empty. Filling them is not part of the searches' share.
    for f in evaluator.f_by_ablation.values():
        f.set_metric.fill_cache()
    for side in SIDES:
        evaluator.engine.baseline(side)
    spent_before = context.meter.spent
    share = state.spent * STABILITY_BUDGET_SHARE / (1 - STABILITY_BUDGET_SHARE)
    searches = _repeat_search(context, weights, spent_before + share)
    jaccard = [_jaccard(state.circuit_nodes, search.circuit) for search in searches]
    cut = [search.cut_off is not None for search in searches]
    inclusion = _inclusion_by_node(state.circuit_nodes, searches)
    mean = decidable_mean(jaccard, cut)
    measured = {
        "jaccard": jaccard,
        "cut": cut,
        "mean": mean,
        "inclusion": inclusion,
        "forward_equivalents": context.meter.spent - spent_before,
    }
    state = add_verdict(
        state.with_changes(stability=mean, cut_searches=sum(cut), inclusion=inclusion)
    )
    described = "not known" if mean is None else f"mean Jaccard {mean:.2f}"
    return context.finish_stage(
        state,
        "stability",
        measured,
        f"{described}; verdict: {state.verdict}",
        "; ".join((_explain_stability(len(searches), sum(cut)), *state.reasons)),
    )


def _explain_stability(n_searches: int, n_cut: int) -> str:
    why = (
        f"mean Jaccard with the circuits selected on {n_searches} bootstrap resamples of the "
        "discovery pairs"
    )
    if n_cut:
        why += (
            f"; {n_cut} searches ended when their share of the budget was spent "
            f"({STABILITY_BUDGET_SHARE:.0%} of the run)"
        )
    return why


def _jaccard(one: NodeSet, other: NodeSet) -> float:
    return len(one & other) / len(one | other)


def _inclusion_by_node(circuit: NodeSet, searches: Sequence[ResampleSearch]) -> dict[str, float]:
    """Return for each node the share of the searches that chose it.

    Only searches that ended count, because nobody knows where the others would have ended.
    """
    ended = [search.circuit for search in searches if search.cut_off is None]
    if not ended:
        return {}
    return {
        str(node): sum(node in nodes for nodes in ended) / len(ended)
        for node in sorted(circuit.union(*ended))
    }


def _repeat_search(
    context: RunContext, weights: Float[Tensor, "draw pair"], max_spent: float
) -> list[ResampleSearch]:
    """Repeat the search on every resample.

    Each search in turn gets an equal part of the work that is left, so that a long search does not
    stop the short ones. What these do not use goes to the searches that were cut off. Those begin
    again, which costs nothing up to where they stopped, since every measured set is kept. If an
    equal part is too small for the next measurement, there are fewer and larger parts.

    Args:
        context: The run.
        weights: The weight of each pair in each resample.
        max_spent: What the meter may have counted at the end.
    """
    meter = context.meter
    limit = meter.limit
    max_spent = max_spent if limit is None else min(limit, max_spent)
    searches: dict[int, ResampleSearch] = {}
    waiting = list(range(len(weights)))
    parts = len(weights)
    try:
        while waiting and parts:
            spent_before = meter.spent
            for number in waiting:
                part = (max_spent - spent_before) / parts
                meter.limit = min(max_spent, meter.spent + part)
                searches[number] = _search_resample(context, weights[number])
            waiting = [number for number in waiting if searches[number].cut_off is not None]
            parts = min(parts // 2 if meter.spent == spent_before else parts, len(waiting))
    finally:
        meter.limit = limit
    return [searches[number] for number in range(len(weights))]


def decidable_mean(jaccard: Sequence[float], cut: Sequence[bool]) -> float | None:
    """Return a mean Jaccard that is certain enough to decide (f).

    A search that was cut off might have ended anywhere, between a Jaccard of 0 and of 1.

    Args:
        jaccard: The Jaccard of each search with the circuit.
        cut: Whether the search was cut off.

    Returns:
        The lower bound of the mean if even that is high enough, the upper bound if even that is
        too low, and None if the searches that were cut off could decide.
    """
    total = sum(value for value, is_cut in zip(jaccard, cut, strict=True) if not is_cut)
    low = total / len(jaccard)
    high = (total + sum(cut)) / len(jaccard)
    if low >= thresholds.MIN_JACCARD:
        return low
    return high if high < thresholds.MIN_JACCARD else None


def _search_resample(context: RunContext, weights: Float[Tensor, "pair"]) -> ResampleSearch:
    """Repeat the whole search, from the ranking on, with the pairs weighted as in one resample."""
    evaluator = context.evaluator("discovery")
    f_by_ablation: dict[EvidenceAblation, ResampledFaithfulness] = {
        ablation: ResampledFaithfulness(f, weights)
        for ablation, f in evaluator.f_by_ablation.items()
    }
    difference = evaluator.engine.baseline("clean") - evaluator.engine.baseline("corrupted")
    gap = difference.double().cpu() @ weights
    noising = _resampled_effects(context, "noising", weights, gap)
    denoising = _resampled_effects(context, "denoising", weights, gap)
    try:
        # Runs of older versions did not keep these sets, so measuring them may cost something.
        by_mean = measure_single_nodes(f_by_ablation["mean"], noising.nodes, "nodes, mean ablation")
    except BudgetError as fault:
        return ResampleSearch(frozenset(), fault.cause)
    ranking = sort_by_effect(combine_directions(noising, denoising), by_mean)
    stops: list[str] = []

    def on_decision(decision: Decision) -> None:
        if decision.stopped == "budget":
            stops.append(decision.why)

    size = find_smallest_size(f_by_ablation, ranking, lambda fault: stops.append(fault.cause))
    start = choose_start(size, ranking)
    circuit = search_circuit(f_by_ablation, start, ranking, context.seed, on_decision)
    return ResampleSearch(circuit, stops[0] if stops else None)


def _resampled_effects(
    context: RunContext,
    direction: Direction,
    weights: Float[Tensor, "pair"],
    gap: Float[Tensor, ""],
) -> NodeEffects:
    """Return the effects of single nodes on a resample, from the metric kept for each pair."""
    result_id = f"nodes-{direction}"
    per_pair = torch.from_numpy(context.run.load_arrays(result_id)["per_pair"]).double()
    names = split_names(context.run.array_metadata(result_id)["nodes"])
    engine = context.evaluator("discovery").engine
    base = engine.baseline(base_side(direction)).double().cpu() @ weights
    patched = per_pair.T @ weights
    values = effect_change(patched, base, direction) / gap
    return NodeEffects(direction, tuple(Node.parse(name) for name in names), per_pair, values)
