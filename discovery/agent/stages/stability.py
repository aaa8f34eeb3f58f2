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

from discovery.agent.budget import STABILITY_SHARE
from discovery.agent.context import RunContext
from discovery.agent.search.decision import ignore_decision
from discovery.agent.search.fit import (
    PLAIN,
    WITH_MARGIN,
    Fit,
    choose_start,
    measure_curve,
)
from discovery.agent.search.search_circuit import SearchOutcome, search_circuit
from discovery.agent.search.stored import StoredFunction, StoredSets
from discovery.agent.stages.verdict import add_verdict
from discovery.agent.state import State
from discovery.errors import BudgetError
from discovery.evaluation import ResampledFaithfulness, sort_by_effect, thresholds
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
from discovery.sites import Node
from discovery.store import Run, split_names

RANKING_ARRAYS = ("nodes-noising", "nodes-denoising", "nodes-mean")
MAX_CHECKS = 4  # measurements of the circuit of one repetition


@dataclass(frozen=True)
class ResampleSearch:
    """The outcome of the search on one resample.

    Attributes:
        circuit: the nodes that it chose.
        drop_shares: the drop of each as a share of δ.
        cut_off: why the search was cut off; None if it ended by itself.
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
    searches = _repeat_search(context)
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


def _repeat_search(context: RunContext) -> list[ResampleSearch]:
    """Repeat the search on every resample, within a share of the budget if there is one."""
    evaluator = context.search_evaluator
    weights = draw_bootstrap_weights(
        evaluator.engine.task, thresholds.STABILITY_RESAMPLES, context.seed + 1
    )
    stored = {ablation: StoredSets(f) for ablation, f in evaluator.f_by_ablation.items()}
    saved_ranking = SavedRanking.load(context.run)
    meter = context.meter
    limit = meter.limit
    if context.settings.budget is not None and limit is not None:
        share = STABILITY_SHARE * context.settings.budget
        meter.limit = min(limit, meter.spent + share)
    try:
        return [_search_resample(context, stored, saved_ranking, of_draw) for of_draw in weights]
    finally:
        meter.limit = limit


def decidable_mean(jaccard: Sequence[float], cut: Sequence[bool]) -> float | None:
    """Return a mean Jaccard that is certain enough to decide (f).

    A search that was cut off might have ended anywhere, between a Jaccard of 0 and of 1.

    Args:
        jaccard: the Jaccard of each search with the circuit.
        cut: whether the search was cut off.

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
    saved_ranking: SavedRanking,
    weights: Float[Tensor, "pair"],
) -> ResampleSearch:
    """Repeat the search with the pairs weighted as in one resample.

    The circuit that it ends with is measured. If that shows that it misses (a) or (b), the search
    is repeated with what has been measured.
    """
    ranking = saved_ranking.rank(weights)
    outcome = SearchOutcome(circuit=frozenset())
    try:
        for _ in range(MAX_CHECKS):
            functions = {a: StoredFunction(sets, weights) for a, sets in stored.items()}
            curve = measure_curve(functions, ranking, WITH_MARGIN)
            start = choose_start(functions, curve, WITH_MARGIN)
            outcome = search_circuit(functions, start, ranking, context.seed, ignore_decision)
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
        BudgetError: if the budget does not reach that far.
    """
    excess = 0.0
    for sets in stored.values():
        needed = [circuit, sets.everything - circuit]
        is_new = not all(sets.faithfulness.set_metric.is_measured(nodes) for nodes in needed)
        f = ResampledFaithfulness(sets.faithfulness, weights)
        faithfulness, knockout = f(needed, "stability").tolist()
        excess += Fit(faithfulness, knockout).excess(PLAIN)
        if is_new:
            sets.refresh()
    return excess == 0


@dataclass(frozen=True, kw_only=True)
class SavedRanking:
    """What the ranking measured for each pair.

    Attributes:
        nodes: the nodes.
        noising: the metric with each node noised, [pair node].
        denoising: the metric with each node denoised, [pair node].
        clean: the metric of the clean runs, [pair].
        corrupted: the metric of the corrupted runs, [pair].
        ablated_by_mean: the metric with each node at its mean, [pair node].
        full: m(U) under mean ablation, [pair].
        empty: m(∅) under mean ablation, [pair].
    """

    nodes: tuple[Node, ...]
    noising: Float[Tensor, "pair node"]
    denoising: Float[Tensor, "pair node"]
    clean: Float[Tensor, "pair"]
    corrupted: Float[Tensor, "pair"]
    ablated_by_mean: Float[Tensor, "pair node"]
    full: Float[Tensor, "pair"]
    empty: Float[Tensor, "pair"]

    @classmethod
    def load(cls, run: Run) -> SavedRanking:
        """Read what `rank_nodes` kept."""
        patched, denoised, by_mean = (
            {name: torch.from_numpy(values).double() for name, values in arrays.items()}
            for arrays in map(run.load_arrays, RANKING_ARRAYS)
        )
        names = split_names(run.array_metadata(RANKING_ARRAYS[0])["nodes"])
        return cls(
            nodes=tuple(map(Node.parse, names)),
            noising=patched["per_pair"],
            denoising=denoised["per_pair"],
            clean=patched["clean"],
            corrupted=patched["corrupted"],
            ablated_by_mean=by_mean["per_pair"],
            full=by_mean["full"],
            empty=by_mean["empty"],
        )

    def rank(self, weights: Float[Tensor, "pair"]) -> list[Node]:
        """Rank the nodes with the pairs weighted, as `rank_nodes` does without weights."""
        part = weights[: len(self.clean)] / weights[: len(self.clean)].sum()
        clean, corrupted = self.clean @ part, self.corrupted @ part
        gap = clean - corrupted
        noising = effect_change(self.noising.T @ part, clean, "noising") / gap
        denoising = effect_change(self.denoising.T @ part, corrupted, "denoising") / gap
        empty = self.empty @ part
        lost = 1 - (self.ablated_by_mean.T @ part - empty) / (self.full @ part - empty)
        patched = zip(noising.tolist(), denoising.tolist(), strict=True)
        by_mean = ((value, 0.0) for value in lost.tolist())
        return sort_by_effect(
            dict(zip(self.nodes, patched, strict=True)),
            dict(zip(self.nodes, by_mean, strict=True)),
        )
