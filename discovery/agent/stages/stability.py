"""Stage 6 ("stability"): would other pairs have led to the same nodes? (condition f)

The selection of nodes, from the ranking to the last node that is dropped, is repeated on bootstrap
resamples of the pairs that the search used. It runs on what the search measured for each pair (see
`search.stored`). The circuit that a repetition ends with is measured; if it turns out not to meet
(a) and (b), the repetition goes on with that knowledge. Without a budget the repetitions run to
their end; with one they may take 30% of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.agent.context import RunContext, split_names
from discovery.agent.search.bounds import PLAIN, WITH_MARGIN
from discovery.agent.search.decision import Decision
from discovery.agent.search.fit import choose_start, measure_curve, measure_fits, total_excess
from discovery.agent.search.search_circuit import SearchOutcome, search_circuit
from discovery.agent.search.stored import StoredFunction, StoredSets
from discovery.agent.stages.verdict import add_verdict
from discovery.agent.state import State
from discovery.engine import base_side
from discovery.errors import BudgetError
from discovery.evaluation import sort_by_effect, thresholds
from discovery.evaluation.stability import (
    combine_weights,
    plain_jaccard,
    weigh_nodes,
    weighted_jaccard,
)
from discovery.graph import EvidenceAblation
from discovery.methods.ablation import NodeSet
from discovery.methods.patching import effect_change
from discovery.methods.statistics import draw_bootstrap_weights
from discovery.sites import Direction, Node

STABILITY_BUDGET_SHARE = 0.3  # of a run's budget
MAX_CHECKS = 4  # measurements of the circuit of one repetition


@dataclass(frozen=True)
class ResampleSearch:
    """The outcome of the search on one resample.

    Attributes:
        circuit: The nodes that it chose.
        drop_shares: The drop of each as a share of δ.
        cut_off: Why the search was cut off; None if it ended by itself.
    """

    circuit: NodeSet
    drop_shares: Mapping[Node, float] = field(default_factory=dict)
    cut_off: str | None = None


def measure_stability(state: State, context: RunContext) -> State:
    """Compare the circuits of the resamples with this one, and decide (f)."""
    if not state.circuit:
        return context.finish_stage(
            state, "stability", {}, "nothing to repeat", "there is no circuit"
        )
    spent_before = context.meter.spent
    searches = _repeat_search(context, state.ranked_nodes)
    own = {Node.parse(name): share for name, share in state.drop_shares.items()}
    weighted = [_weighted(state.circuit_nodes, own, search) for search in searches]
    plain = [plain_jaccard(state.circuit_nodes, search.circuit) for search in searches]
    cut = [search.cut_off is not None for search in searches]
    inclusion = _inclusion_by_node(state.circuit_nodes, searches)
    plain_mean = None if any(cut) else sum(plain) / len(plain)
    is_weighted = context.rules != 1
    mean = decidable_mean(weighted if is_weighted else plain, cut)
    measured = {
        "jaccard": weighted,
        "plain_jaccard": plain,
        "cut": cut,
        "mean": mean,
        "plain_mean": plain_mean,
        "inclusion": inclusion,
        "forward_equivalents": context.meter.spent - spent_before,
    }
    context.save_set_metrics()
    state = add_verdict(
        state.with_changes(
            stability=mean,
            plain_jaccard=plain_mean if is_weighted else None,
            cut_searches=sum(cut),
            inclusion=inclusion,
        ),
        context.rules,
    )
    return context.finish_stage(
        state,
        "stability",
        measured,
        f"{_describe_mean(mean)}; verdict: {state.verdict}",
        "; ".join((_explain_stability(len(searches), sum(cut)), *state.reasons)),
    )


def _describe_mean(mean: float | None) -> str:
    return "not known" if mean is None else f"mean weighted Jaccard {mean:.2f}"


def _explain_stability(n_searches: int, n_cut: int) -> str:
    why = (
        f"mean weighted Jaccard with the circuits selected on {n_searches} bootstrap resamples of "
        "the discovery pairs"
    )
    if n_cut:
        why += f"; {n_cut} searches ended when the budget was spent"
    return why


def _weighted(circuit: NodeSet, own: Mapping[Node, float], search: ResampleSearch) -> float:
    """Return the weighted Jaccard of the circuit with that of one resample."""
    one = {node: own.get(node, 0.0) for node in circuit}
    other = {node: search.drop_shares.get(node, 0.0) for node in search.circuit}
    weights = combine_weights(_weights(one), _weights(other))
    return weighted_jaccard(circuit, search.circuit, weights)


def _weights(drop_shares: Mapping[Node, float]) -> dict[Node, float]:
    """Return the weights of nodes whose drops are given as shares of δ."""
    return weigh_nodes({"resample": drop_shares}, {"resample": 1.0})


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


def _repeat_search(context: RunContext, ranking: Sequence[Node]) -> list[ResampleSearch]:
    """Repeat the search on every resample, within a share of the budget if there is one."""
    evaluator = context.search_evaluator
    weights = draw_bootstrap_weights(
        evaluator.engine.task, thresholds.STABILITY_RESAMPLES, context.seed + 1
    )
    stored = {ablation: StoredSets(f) for ablation, f in evaluator.f_by_ablation.items()}
    meter = context.meter
    limit = meter.limit
    if context.settings.budget is not None and limit is not None:
        share = STABILITY_BUDGET_SHARE * context.settings.budget
        meter.limit = min(limit, meter.spent + share)
    try:
        return [_search_resample(context, stored, ranking, of_draw) for of_draw in weights]
    finally:
        meter.limit = limit


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


def _search_resample(
    context: RunContext,
    stored: Mapping[EvidenceAblation, StoredSets],
    ranking: Sequence[Node],
    weights: Float[Tensor, "pair"],
) -> ResampleSearch:
    """Repeat the search with the pairs weighted as in one resample.

    The circuit that it ends with is measured. If that shows that it misses (a) or (b), the search
    is repeated with what has been measured.
    """
    ranking = _rank_on_resample(context, ranking, weights)
    outcome = SearchOutcome(circuit=frozenset())
    try:
        for _ in range(MAX_CHECKS):
            functions = {a: StoredFunction(sets, weights) for a, sets in stored.items()}
            curve = measure_curve(functions, ranking, WITH_MARGIN)
            start = choose_start(functions, curve, WITH_MARGIN)
            outcome = search_circuit(functions, start, ranking, context.seed, _ignore)
            if _is_confirmed(stored, outcome.circuit, weights):
                break
    except BudgetError as fault:
        return ResampleSearch(outcome.circuit, outcome.drop_shares, fault.cause)
    return ResampleSearch(outcome.circuit, outcome.drop_shares)


def _is_confirmed(
    stored: Mapping[EvidenceAblation, StoredSets],
    circuit: NodeSet,
    weights: Float[Tensor, "pair"],
) -> bool:
    """Measure a circuit, and return whether it meets (a) and (b) on the resample.

    Raises:
        BudgetError: If the budget does not reach that far.
    """
    for sets in stored.values():
        needed = [circuit, sets.everything - circuit]
        if not all(sets.faithfulness.set_metric.is_measured(nodes) for nodes in needed):
            sets.faithfulness(needed, "stability")
            sets.refresh()
    functions = {a: StoredFunction(sets, weights) for a, sets in stored.items()}
    (fit,) = measure_fits(functions, [circuit])
    return total_excess(fit, PLAIN) == 0


def _rank_on_resample(
    context: RunContext, ranking: Sequence[Node], weights: Float[Tensor, "pair"]
) -> list[Node]:
    """Rank the nodes by their effects with the pairs weighted, as `rank_nodes` does."""
    noising, denoising = (
        _resampled_effects(context, direction, weights) for direction in ("noising", "denoising")
    )
    by_mean = _resampled_mean_effects(context, weights)
    patched = {node: (noising[node], denoising[node]) for node in noising}
    return sort_by_effect(patched, by_mean)


def _resampled_effects(
    context: RunContext, direction: Direction, weights: Float[Tensor, "pair"]
) -> dict[Node, float]:
    """Return the effects of single nodes on a resample, from the metric kept for each pair."""
    result_id = f"nodes-{direction}"
    arrays = context.run.load_arrays(result_id)
    per_pair = torch.from_numpy(arrays["per_pair"]).double()
    names = split_names(context.run.array_metadata(result_id)["nodes"])
    part = weights[: len(per_pair)] / weights[: len(per_pair)].sum()
    sides = {
        side: torch.from_numpy(arrays[side]).double() @ part for side in ("clean", "corrupted")
    }
    gap = sides["clean"] - sides["corrupted"]
    values = effect_change(per_pair.T @ part, sides[base_side(direction)], direction) / gap
    return {Node.parse(name): float(value) for name, value in zip(names, values, strict=True)}


def _resampled_mean_effects(
    context: RunContext, weights: Float[Tensor, "pair"]
) -> dict[Node, tuple[float, float]]:
    """Return the effects of single nodes under mean ablation on a resample."""
    arrays = context.run.load_arrays("nodes-mean")
    names = split_names(context.run.array_metadata("nodes-mean")["nodes"])
    per_pair = torch.from_numpy(arrays["per_pair"]).double()
    part = weights[: len(per_pair)] / weights[: len(per_pair)].sum()
    empty = torch.from_numpy(arrays["empty"]).double() @ part
    gap = torch.from_numpy(arrays["full"]).double() @ part - empty
    lost = (1 - (per_pair.T @ part - empty) / gap).tolist()
    return {Node.parse(name): (value, 0.0) for name, value in zip(names, lost, strict=True)}


def _ignore(decision: Decision) -> None:
    """Take no notice of a decision."""
