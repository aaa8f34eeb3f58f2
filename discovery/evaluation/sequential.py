"""Checking many nodes one by one: which nodes, on how many pairs, and what the rest may hide.

*Pairs.* Most nodes are far from the bound of a condition, and 32 pairs show it. So each node
starts on the first 32 held-out pairs (which are a random sample, since a split's pairs are in
random order). All pairs are used for every node that is not clear of the bound at 99% confidence,
and for the 8 nodes nearest to it.

*Nodes.* If more than 64 nodes are to be checked on one side of the circuit, 32 are chosen by their
screened effect and 32 at random. The random ones bound the share of unchecked nodes beyond the
limit: if many were, one of them would have been drawn (hypergeometric distribution, 95%).

*Intervals* of f(S) − f(T) are those of a ratio of means, linearised, with quantiles of Student's t:
with d the difference of the metric of a pair and g = m(U) − m(∅), the ratio r = mean d / mean g has
the standard error of the mean of (d − r·g) / mean g. They hold for 32 pairs as for all, which a
bootstrap of the largest statistic over nodes does not, as it needs the same pairs for all nodes. So
the simultaneous bounds of (c) are Bonferroni's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from discovery.evaluation import thresholds
from discovery.evaluation.faithfulness import Faithfulness
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

N_NEAREST = 8  # nodes nearest to the bound, which are measured on all pairs in any case
CLEAR_CONFIDENCE = 0.99  # of the interval that decides whether a node is clear of the bound
BOUND_CONFIDENCE = 0.95  # of what is said about unchecked nodes


@dataclass(frozen=True, kw_only=True)
class SetDifference:
    """f(S) − f(T) of two sets, measured on the first so many pairs.

    Attributes:
        value: the difference; means over the pairs come first, then the ratio.
        error: its standard error; infinite for a single pair.
        n: the number of pairs.
    """

    value: float
    error: float
    n: int

    @property
    def size(self) -> float:
        """The absolute difference."""
        return abs(self.value)

    def lowest_size(self, confidence: float) -> float:
        """Return the one-sided lower bound of the absolute difference; never below 0."""
        return max(0.0, self.size - self._half_width(confidence))

    def highest_size(self, confidence: float) -> float:
        """Return the one-sided upper bound of the absolute difference."""
        return self.size + self._half_width(confidence)

    def _half_width(self, confidence: float) -> float:
        if self.error == 0 or math.isinf(self.error):
            return self.error
        return self.error * float(stats.t.ppf(confidence, self.n - 1))


SetPair = tuple[NodeSet, NodeSet]


def measure_differences(
    f: Faithfulness,
    pairs_of_sets: Sequence[SetPair],
    label: str,
    pairs: int | None = None,
    relative_to: SetPair | None = None,
) -> list[SetDifference]:
    """Measure f(S) − f(T) of several pairs of sets, over all pairs or the first so many.

    Args:
        f: f on one split under one ablation.
        pairs_of_sets: S and T of each difference.
        label: names the work for progress and errors.
        pairs: the number of pairs; None means all.
        relative_to: two sets whose difference is measured on all pairs. If the other differences
            share most of their noise with it, a few pairs show what is left. The standard error is
            that of the sum of both.

    Raises:
        BudgetError: if the budget does not reach that far.
    """
    if not pairs_of_sets:
        return []
    sets = [node_set for pair in pairs_of_sets for node_set in pair]
    metric = f.set_metric(sets, label, pairs).double().cpu()
    changes = metric[0::2] - metric[1::2]
    gap = f.full - f.empty
    n = changes.shape[1]
    shared = _Ratio(0.0, torch.zeros(f.n_pairs, dtype=torch.float64))
    if relative_to is not None and n < f.n_pairs:
        reference = f.set_metric(list(relative_to), label).double().cpu()
        change = reference[0] - reference[1]
        changes = changes - change[:n]
        shared = _Ratio.of(change, gap)
    rests = [_Ratio.of(change, gap[:n]) for change in changes]
    return [
        SetDifference(value=rest.value + shared.value, error=_combine_errors(shared, rest), n=n)
        for rest in rests
    ]


@dataclass(frozen=True)
class _Ratio:
    """A ratio of means over pairs.

    Attributes:
        value: the ratio.
        residuals: what each pair adds to its error; the error of the mean of these is that of the
            ratio.
    """

    value: float
    residuals: Float[Tensor, "pair"]

    @classmethod
    def of(cls, change: Float[Tensor, "pair"], gap: Float[Tensor, "pair"]) -> _Ratio:
        """Return the ratio of the means of a change and of the gap m(U) − m(∅)."""
        ratio = change.mean() / gap.mean()
        return cls(float(ratio), (change - ratio * gap) / gap.mean())


def _combine_errors(shared: _Ratio, rest: _Ratio) -> float:
    """Return the standard error of the sum of a ratio over all pairs and one over the first pairs.

    The first n of N pairs count in both:  var(shared) / N + var(rest) / n + 2 · cov / N.
    """
    n, n_all = len(rest.residuals), len(shared.residuals)
    if n < 2:
        return math.inf
    of_first = torch.stack([shared.residuals[:n], rest.residuals])
    (_, covariance), (_, of_rest) = torch.cov(of_first).tolist()
    of_shared = float(shared.residuals.var())
    variance = of_shared / n_all + of_rest / n + 2 * covariance / n_all
    return math.sqrt(max(variance, 0.0))


def check_sequentially(
    f: Faithfulness,
    sets_by_node: Mapping[Node, SetPair],
    limit: float,
    label: str,
    n_tests: int | None = None,
    n_nearest: int = N_NEAREST,
    relative_to: SetPair | None = None,
) -> dict[Node, SetDifference]:
    """Measure f(S) − f(T) for each node: on 32 pairs, and on all of them if it is near the limit.

    Args:
        f: f on one split under one ablation.
        sets_by_node: S and T of each node.
        limit: the bound on |f(S) − f(T)|.
        label: names the work for progress and errors.
        n_tests: how many nodes are tested together; those of `sets_by_node` if None. A node above
            the limit is measured on all pairs unless it is above it simultaneously.
        n_nearest: how many nodes nearest to the limit are measured on all pairs in any case.
        relative_to: see `measure_differences`.

    Raises:
        BudgetError: if the budget does not reach that far.
    """
    nodes = list(sets_by_node)
    first = min(thresholds.FIRST_PAIRS, f.n_pairs)
    on_first = measure_differences(f, list(sets_by_node.values()), label, first, relative_to)
    differences = dict(zip(nodes, on_first, strict=True))
    if first == f.n_pairs:
        return differences
    confidence = simultaneous_confidence(n_tests or len(nodes))
    near = {v for v, d in differences.items() if not is_clear(d, limit, confidence)}
    near.update(sorted(nodes, key=lambda v: (abs(differences[v].size - limit), v))[:n_nearest])
    unsettled = [v for v in nodes if v in near]
    refined = measure_differences(f, [sets_by_node[v] for v in unsettled], label)
    return differences | dict(zip(unsettled, refined, strict=True))


def is_clear(difference: SetDifference, limit: float, confidence: float) -> bool:
    """Whether a difference is surely below the limit, or surely above it at this confidence too."""
    two_sided = (1 + CLEAR_CONFIDENCE) / 2
    if difference.highest_size(two_sided) <= limit:
        return True
    return difference.lowest_size(max(two_sided, confidence)) > limit


def simultaneous_confidence(n_tests: int) -> float:
    """Return the confidence of one of so many bounds that hold together with 95% confidence."""
    return 1 - thresholds.SIGNIFICANCE_LEVEL / max(n_tests, 1)


@dataclass(frozen=True)
class NodeSelection:
    """Which nodes of one side are checked one by one.

    Attributes:
        by_effect: the nodes chosen by their screened effect, or all of them.
        at_random: the nodes drawn from the rest.
        unchecked: the other nodes.
    """

    by_effect: tuple[Node, ...]
    at_random: tuple[Node, ...] = ()
    unchecked: tuple[Node, ...] = ()

    @property
    def checked(self) -> list[Node]:
        """The nodes that are checked, in forward order."""
        return sorted([*self.by_effect, *self.at_random])

    def bound_unchecked(
        self, beyond: Collection[Node], opened_nodes: Collection[Node] = ()
    ) -> float | None:
        """Return a 95% upper bound on the share of unchecked nodes beyond the limit.

        Args:
            beyond: the checked nodes that are beyond the limit, opened ones included.
            opened_nodes: unchecked nodes that were checked after all.

        Returns:
            The bound; None if no node is unchecked.
        """
        n_unchecked = len(self.unchecked) - len(opened_nodes)
        if not n_unchecked:
            return None
        n_drawn = len(self.at_random)
        n_rest = n_drawn + len(self.unchecked)
        n_drawn_beyond = sum(node in beyond for node in self.at_random)
        max_beyond = n_drawn_beyond
        for count in range(n_drawn_beyond, n_rest - n_drawn + n_drawn_beyond + 1):
            if stats.hypergeom.cdf(n_drawn_beyond, n_rest, count, n_drawn) > 1 - BOUND_CONFIDENCE:
                max_beyond = count
        n_opened_beyond = sum(node in beyond for node in opened_nodes)
        return min(1.0, max(0, max_beyond - n_drawn_beyond - n_opened_beyond) / n_unchecked)


def select_nodes(
    nodes: Collection[Node],
    ranking: Sequence[Node],
    seed: int,
    purpose: str,
    *,
    smallest_effect: bool = False,
) -> NodeSelection:
    """Choose which nodes are checked one by one.

    They are all nodes if there are at most 64, else 32 by effect and 32 at random.

    Args:
        nodes: the nodes of one side.
        ranking: all nodes, largest screened effect first.
        seed: of the drawn nodes.
        purpose: names the condition, so that each condition has its own draw.
        smallest_effect: whether the nodes with the smallest effect are chosen, not the largest.
    """
    everything = sorted(nodes)
    if len(everything) <= thresholds.MAX_CHECKED_NODES:
        return NodeSelection(tuple(everything))
    order = list(reversed(ranking)) if smallest_effect else list(ranking)
    members = set(everything)
    by_effect = [node for node in order if node in members][: thresholds.N_CHECKED_BY_EFFECT]
    ranked_nodes = set(by_effect)
    remaining = [node for node in everything if node not in ranked_nodes]
    at_random = random.Random(f"{purpose}-{seed}").sample(remaining, thresholds.N_CHECKED_AT_RANDOM)
    drawn_nodes = set(at_random)
    unchecked = tuple(node for node in remaining if node not in drawn_nodes)
    return NodeSelection(tuple(by_effect), tuple(at_random), unchecked)
