"""Condition (d): every node of the circuit is needed in some context.

This is the minimality of Wang et al. (2023, arXiv 2211.00593), with Holm's correction. A node is
needed if it changes f by δ or more under at least one ablation, in the context that discovery pairs
chose for it (see `contexts`), and if a paired sign-flip test says that this is no accident. A drop
of δ or more with a larger p is undecided. Nodes are checked as `sequential` describes.

δ is half of an average node's share of f(C), and 0.02 at most. In a large circuit such nodes could
be padding: a set that meets every condition may be filled up with nodes that matter a little. So
with W the nodes whose largest drop is below 0.02, neither the circuit without W nor the circuit
without the weaker half of W may meet (a) to (c).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from discovery.evaluation import thresholds
from discovery.evaluation.completeness import has_small_gaps
from discovery.evaluation.contexts import ContextsByAblation
from discovery.evaluation.faithfulness import Faithfulness
from discovery.evaluation.sequential import (
    CLEAR_CONFIDENCE,
    N_NEAREST,
    NodeSelection,
    SetDifference,
    SetPair,
    measure_differences,
)
from discovery.graph import (
    EvidenceAblation,
    Minimality,
    MinimalityCheck,
    Outcome,
    PaddingTrial,
)
from discovery.methods.ablation import NodeSet
from discovery.methods.statistics import holm, sign_flip_tests
from discovery.sites import Node

PROGRESS_LABEL = "minimality"

MinimalityRows = dict[EvidenceAblation, tuple[Minimality, ...]]
Row = tuple[EvidenceAblation, Node]


def minimal_drop(faithfulness: float, size: int) -> float:
    """Return δ = min(0.02, 0.5 · f(C) / |C|), the drop that every node must reach (d).

    δ is half of an average node's share of f(C): in a large circuit no node can carry 0.02 of the
    behaviour alone. It is 0 if f(C) is not positive, since (a) fails then anyway.

    Args:
        faithfulness: f(C) under one ablation.
        size: the number of heads and MLPs in the circuit.
    """
    if not size:
        return thresholds.MIN_DROP
    return max(0.0, min(thresholds.MIN_DROP, thresholds.DROP_SHARE * faithfulness / size))


class DropMeasurement:
    """The drops of the checked nodes on held-out pairs, with p-values, over both ablations.

    Attributes:
        f_by_ablation: f on held-out pairs.
        contexts: the context of each node under each ablation.
        minimal_drops: δ under each ablation.
        flips: how many random signs each test draws.
        drops: the drop of each node under each ablation.
        p_values: the p-value of each, before Holm's correction.
    """

    def __init__(
        self,
        f_by_ablation: Mapping[EvidenceAblation, Faithfulness],
        circuit: NodeSet,
        contexts: ContextsByAblation,
        minimal_drops: Mapping[EvidenceAblation, float],
        seed: int,
    ) -> None:
        self.f_by_ablation = f_by_ablation
        self.circuit = circuit
        self.contexts = contexts
        self.minimal_drops = minimal_drops
        self.seed = seed
        self.flips = thresholds.count_flips(len(circuit))
        self.drops: dict[Row, SetDifference] = {}
        self.p_values: dict[Row, float] = {}

    def measure(
        self,
        nodes: Sequence[Node],
        pairs: int | None,
        ablations: Sequence[EvidenceAblation] | None = None,
    ) -> None:
        """Measure the drops of some nodes, over all or the first pairs.

        Args:
            nodes: the nodes.
            pairs: the number of pairs; None means all.
            ablations: the ablations; all if None.

        Raises:
            BudgetError: if the budget does not reach that far.
        """
        for ablation in ablations or list(self.f_by_ablation):
            f = self.f_by_ablation[ablation]
            sets = [self._sets_of(ablation, v) for v in nodes]
            drops = measure_differences(f, sets, PROGRESS_LABEL, pairs)
            shares = [self._shares(f, first, second, pairs) for first, second in sets]
            if not shares:
                continue
            p_values = sign_flip_tests(np.stack(shares, 1), self.seed, self.flips).tolist()
            for v, drop, p in zip(nodes, drops, p_values, strict=True):
                self.drops[ablation, v] = drop
                self.p_values[ablation, v] = p

    def refine(self, nodes: Sequence[Node]) -> None:
        """Measure all pairs for the nodes that are not settled.

        A node needs one ablation only, so the one under which it matters more comes first, and the
        other one follows if that does not settle it.

        Raises:
            BudgetError: if the budget does not reach that far.
        """
        nearest = self.find_unsettled(nodes)
        first = {v: self._stronger_ablation(v) for v in nearest}
        for ablation in self.f_by_ablation:
            self.measure([v for v in nearest if first[v] == ablation], None, [ablation])
        corrected = self._corrected()

        def is_needed(row: Row) -> bool:
            is_large = self.drops[row].size >= self.minimal_drops[row[0]]
            return is_large and corrected[row] <= thresholds.SIGNIFICANCE_LEVEL

        unsettled = [v for v in nearest if not is_needed((first[v], v))]
        for ablation in self.f_by_ablation:
            self.measure([v for v in unsettled if first[v] != ablation], None, [ablation])

    def _stronger_ablation(self, v: Node) -> EvidenceAblation:
        """Return the ablation under which a node's drop is the largest share of δ."""
        return max(
            self.minimal_drops,
            key=lambda ablation: (
                self.drops[ablation, v].size / (self.minimal_drops[ablation] or 1.0)
            ),
        )

    def find_unsettled(self, nodes: Sequence[Node]) -> list[Node]:
        """Return the nodes that are to be measured on all pairs.

        A node is settled if it is clearly needed under an ablation, or if both drops are clearly
        below δ. The nodes nearest to δ, 8 of them, are measured on all pairs in any case.
        """
        corrected = self._corrected()
        confidence = (1 + CLEAR_CONFIDENCE) / 2

        def is_settled(v: Node) -> bool:
            is_below = True
            for ablation, delta in self.minimal_drops.items():
                drop = self.drops[ablation, v]
                is_significant = corrected[ablation, v] <= thresholds.SIGNIFICANCE_LEVEL
                if is_significant and drop.lowest_size(confidence) >= delta:
                    return True
                is_below = is_below and drop.highest_size(confidence) < delta
            return is_below

        def distance(v: Node) -> float:
            return min(
                abs(self.drops[ablation, v].size - delta) / (delta or 1.0)
                for ablation, delta in self.minimal_drops.items()
            )

        nearest = set(sorted(nodes, key=lambda v: (distance(v), v))[:N_NEAREST])
        return [v for v in nodes if v in nearest or not is_settled(v)]

    def rows(self, ablation: EvidenceAblation, nodes: Sequence[Node]) -> tuple[Minimality, ...]:
        """Return the rows of the record under one ablation."""
        corrected = self._corrected()
        return tuple(
            Minimality(
                node=str(v),
                context=tuple(str(w) for w in sorted(self.contexts[ablation][v].context)),
                drop=self.drops[ablation, v].size,
                p=self.p_values[ablation, v],
                p_holm=corrected[ablation, v],
                n=self.drops[ablation, v].n,
            )
            for v in nodes
        )

    def _corrected(self) -> dict[Row, float]:
        """Return the p-values after Holm's correction over all nodes and both ablations."""
        return dict(zip(self.p_values, holm(list(self.p_values.values())), strict=True))

    def _sets_of(self, ablation: EvidenceAblation, v: Node) -> SetPair:
        remainder = self.circuit - self.contexts[ablation][v].context
        return remainder, remainder - {v}

    def _shares(
        self, f: Faithfulness, first: NodeSet, second: NodeSet, pairs: int | None
    ) -> np.ndarray:
        metric = f.set_metric([first, second], PROGRESS_LABEL, pairs).double().cpu()
        return (metric[0] - metric[1]).numpy()


def measure_minimality(
    f_by_ablation: Mapping[EvidenceAblation, Faithfulness],
    circuit: NodeSet,
    selection: NodeSelection,
    contexts: ContextsByAblation,
    minimal_drops: Mapping[EvidenceAblation, float],
    seed: int,
) -> tuple[MinimalityRows, MinimalityCheck]:
    """Measure the drop of each checked node in its context, with p-values.

    Args:
        f_by_ablation: f on held-out pairs, under each ablation for which it is defined.
        circuit: the circuit.
        selection: which nodes are checked.
        contexts: the context of each node, chosen on discovery pairs.
        minimal_drops: δ under each ablation, on held-out pairs.
        seed: of the sign-flip tests.

    Returns:
        The rows under each ablation, and how they were made.

    Raises:
        BudgetError: if the budget does not reach that far.
    """
    nodes = selection.checked
    measurement = DropMeasurement(f_by_ablation, circuit, contexts, minimal_drops, seed)
    n_pairs = min(f.n_pairs for f in f_by_ablation.values())
    first = min(thresholds.FIRST_PAIRS, n_pairs)
    measurement.measure(nodes, first)
    if first < n_pairs:
        measurement.refine(nodes)
    rows: MinimalityRows = {
        ablation: measurement.rows(ablation, nodes) for ablation in f_by_ablation
    }
    needs = decide_nodes(rows, minimal_drops)
    not_needed = {v for v in nodes if needs[str(v)] != "holds"}
    check = MinimalityCheck(
        checked=len(nodes),
        unchecked=len(selection.unchecked),
        unchecked_bound=selection.bound_unchecked(not_needed),
        flips=measurement.flips,
    )
    return rows, check


def decide_nodes(
    rows_by_ablation: Mapping[EvidenceAblation, Sequence[Minimality]],
    minimal_drops: Mapping[EvidenceAblation, float],
) -> dict[str, Outcome]:
    """Decide for each checked node whether it is needed.

    It is if its drop reaches δ with p ≤ 0.05 under at least one ablation. It is undecided if its
    drop reaches δ with a larger p only, and not needed otherwise. A number that was not measured
    does not count.
    """
    outcomes: dict[str, Outcome] = {}
    for ablation, rows in rows_by_ablation.items():
        for row in rows:
            outcome: Outcome = "fails"
            if row.drop is not None and row.drop >= minimal_drops[ablation]:
                is_significant = (
                    row.p_holm is not None and row.p_holm <= thresholds.SIGNIFICANCE_LEVEL
                )
                outcome = "holds" if is_significant else "undecided"
            known = outcomes.get(row.node, "fails")
            order: Sequence[Outcome] = ("fails", "undecided", "holds")
            outcomes[row.node] = max(known, outcome, key=order.index)
    return outcomes


def find_weak_nodes(
    rows_by_ablation: Mapping[EvidenceAblation, Sequence[Minimality]],
) -> list[Node]:
    """Return W: the checked nodes whose largest drop is below 0.02, the weakest first."""
    largest: dict[str, float] = {}
    for rows in rows_by_ablation.values():
        for row in rows:
            largest[row.node] = max(largest.get(row.node, 0.0), row.drop or 0.0)
    weak = [Node.parse(name) for name, drop in largest.items() if drop < thresholds.MIN_DROP]
    return sorted(weak, key=lambda v: (largest[str(v)], v))


def try_without_padding(
    f_by_ablation: Mapping[EvidenceAblation, Faithfulness],
    circuit: NodeSet,
    weak: Sequence[Node],
    ranking: Sequence[Node],
    seed: int,
) -> tuple[PaddingTrial, ...]:
    """Try the circuit without its weak nodes, and without the weaker half of them.

    Args:
        f_by_ablation: f on held-out pairs.
        circuit: the circuit.
        weak: W, the weakest node first.
        ranking: all nodes, largest screened effect first.
        seed: of the nodes that are drawn at random.

    Raises:
        BudgetError: if the budget does not reach that far.
    """
    half = weak[: math.ceil(len(weak) / 2)]
    trials = []
    for left_out in dict.fromkeys((tuple(weak), tuple(half))):
        if not left_out:
            continue
        why_not = _find_missed_condition(f_by_ablation, circuit - set(left_out), ranking, seed)
        names = tuple(str(v) for v in sorted(left_out))
        trials.append(PaddingTrial(left_out=names, meets=why_not is None, why_not=why_not))
    return tuple(trials)


def _find_missed_condition(
    f_by_ablation: Mapping[EvidenceAblation, Faithfulness],
    nodes: NodeSet,
    ranking: Sequence[Node],
    seed: int,
) -> str | None:
    """Return the first of (a) to (c) that a set misses by point values; None if it meets all."""
    for ablation, f in f_by_ablation.items():
        faithfulness, knockout = f([nodes, f.everything - nodes], PROGRESS_LABEL).tolist()
        low, high = thresholds.FAITHFULNESS_BAND
        if not low <= faithfulness <= high:
            return f"(a) under {ablation}: f = {faithfulness:.3f}"
        low, high = thresholds.KNOCKOUT_BAND
        if not low <= knockout <= high:
            return f"(b) under {ablation}: f of the rest = {knockout:.3f}"
    for ablation, f in f_by_ablation.items():
        if not has_small_gaps(f, nodes, ranking, seed):
            return f"(c) under {ablation}"
    return None
