"""The contexts of condition (d): what is taken out of the circuit together with a node.

A node with a backup inside the circuit changes nothing alone, but does so once the backup is taken
out. So a node that falls short of δ alone is tried in the context of each other node, and then of
up to four more that are added greedily. Contexts are chosen on discovery pairs, 32 at most.

A circuit of 50 nodes has 2,450 contexts of one node, most of which say nothing. If there are more
than 16 other nodes, only the 8 that matter most alone are tried first (a backup acts once one of
these is out). Nodes that share work matter little alone. Two joint tests find them: all other nodes
short of δ are taken out, or only those in the same and adjacent layers. If the node matters in
either test, 8 more single contexts are tried, nearest layers first, and then larger contexts. A
screening on 8 pairs comes first; contexts that promise something are measured on all 32.

Drops that are equal within δ/2 are ties. Of tied contexts the one wins that hurts the circuit
least: taking out one of three nodes that do the same work changes nothing, but leads to the context
in which the third one matters.

The search ends for a node that reaches 1.25 δ under either ablation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from discovery.evaluation.faithfulness import FaithfulnessByAblation, SetFunction
from discovery.graph import EvidenceAblation
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

PROGRESS_LABEL = "minimality"
CONTEXT_PAIRS = 32  # contexts are compared on so many discovery pairs
CONTEXT_SCREENING_PAIRS = 8  # all contexts are first measured on so many of these pairs
MAX_PARTNERS = 16  # if there are more other nodes, only so many are tried
N_PARTNERS_BY_DROP = 8  # so many of the partners matter most alone; the others may share work
MAX_SCREENED = 4  # after the screening, so many contexts are measured on CONTEXT_PAIRS
MAX_GREEDY_PARTNERS = 6  # each step of extending a context tries so many nodes
MAX_ADDED_NODES = 4  # a context of one node is extended by at most so many nodes
MIN_SCREENED_DROP = 0.75  # in δ: contexts are followed up if the screening reaches so much
MIN_IMPROVEMENT = 1e-9  # a later context must be better by more than rounding
SUFFICIENT_DROP = 1.25  # in δ: a node that reaches so much needs no further context


@dataclass(frozen=True)
class ContextDrop:
    """How much a node matters in a context.

    Attributes:
        context: the nodes K that are taken out with it.
        drop: |f(C∖K) − f(C∖K∖v)|.
    """

    context: NodeSet
    drop: float


ContextsByAblation = dict[EvidenceAblation, dict[Node, ContextDrop]]


def choose_contexts(
    f_by_ablation: FaithfulnessByAblation,
    circuit: NodeSet,
    minimal_drops: Mapping[EvidenceAblation, float],
    nodes: Sequence[Node] | None = None,
) -> ContextsByAblation:
    """Choose the context in which each node matters most, under each ablation.

    Args:
        f_by_ablation: f on discovery pairs. If it is null under an ablation, every context is ∅.
        circuit: the circuit.
        minimal_drops: δ under each ablation.
        nodes: the nodes of the circuit to choose contexts for; all if None.

    Raises:
        BudgetError: if the budget does not reach that far.
    """
    members = sorted(circuit) if nodes is None else list(nodes)
    searches = {
        ablation: ContextSearch(f, circuit, minimal_drops[ablation])
        for ablation, f in f_by_ablation.items()
    }
    contexts: ContextsByAblation = {
        ablation: {v: search.drop_alone(v) for v in members}
        for ablation, search in searches.items()
    }

    def short_nodes() -> list[Node]:
        return [
            v
            for v in members
            if not any(s.is_enough(contexts[ablation][v].drop) for ablation, s in searches.items())
        ]

    for ablation, search in searches.items():
        for v in short_nodes():
            contexts[ablation][v] = search.find_best(v)
    return contexts


class ContextSearch:
    """The search for contexts under one ablation.

    Attributes:
        f: f on discovery pairs.
        circuit: the circuit.
        minimal_drop: δ.
    """

    def __init__(self, f: SetFunction, circuit: NodeSet, minimal_drop: float) -> None:
        self.f = f
        self.circuit = circuit
        self.minimal_drop = minimal_drop
        self._pairs = min(CONTEXT_PAIRS, f.n_pairs)
        self._alone: dict[Node, float] = {}
        if f.is_defined:
            others = sorted(circuit)
            whole, *without = f(
                [circuit, *(circuit - {v} for v in others)], PROGRESS_LABEL, self._pairs
            ).tolist()
            self._alone = {v: abs(whole - value) for v, value in zip(others, without, strict=True)}

    def drop_alone(self, v: Node) -> ContextDrop:
        """Return the drop of a node with nothing else taken out."""
        return ContextDrop(frozenset(), self._alone.get(v, 0.0))

    def is_enough(self, drop: float) -> bool:
        """Whether a drop is clear enough of δ for the search to end."""
        return drop >= SUFFICIENT_DROP * self.minimal_drop

    def find_best(self, v: Node) -> ContextDrop:
        """Return the context in which a node matters most, of those that are tried."""
        best = self.drop_alone(v)
        others = sorted(self.circuit - {v})
        if not self.f.is_defined or not others:
            return best
        shares_work = True
        if len(others) > MAX_PARTNERS:
            shares_work = self._shares_work(v)
            others = self._choose_partners(v, others, shares_work=shares_work)
        singles = [frozenset({w}) for w in others]
        order, screened = self._rank(v, singles)
        if not shares_work and screened < MIN_SCREENED_DROP * self.minimal_drop:
            return best
        current = self._best_of(v, [singles[n] for n in order])
        best = _larger(best, current)
        followers = [others[n] for n in order[:MAX_GREEDY_PARTNERS]]
        if len(others) <= MAX_PARTNERS and shares_work:
            followers = [others[n] for n in order]
        for _ in range(MAX_ADDED_NODES if shares_work else 0):
            larger = [current.context | {w} for w in followers if w not in current.context]
            if self.is_enough(best.drop) or not larger:
                break
            current = self._best_of(v, [larger[n] for n in self._rank(v, larger)[0]][:1])
            best = _larger(best, current)
        return best

    def _shares_work(self, v: Node) -> bool:
        """Whether a node matters once other nodes that matter little are out, all of them together.

        They are all those that fall short of δ, or those in the same and the adjacent layers.
        """
        short = {w for w, drop in self._alone.items() if drop < self.minimal_drop} - {v}
        near = {w for w in short if abs((w.layer or 0) - (v.layer or 0)) <= 1}
        contexts = [frozenset(nodes) for nodes in (short, near) if nodes]
        if not contexts:
            return False
        _, drops = self._measure(v, contexts, min(CONTEXT_SCREENING_PAIRS, self._pairs))
        return max(drops) >= MIN_SCREENED_DROP * self.minimal_drop

    def _choose_partners(self, v: Node, others: Sequence[Node], *, shares_work: bool) -> list[Node]:
        """Return the other nodes that are tried with a node, if there are many."""
        by_drop = sorted(others, key=lambda w: (-self._alone[w], w))[:N_PARTNERS_BY_DROP]
        if not shares_work:
            return by_drop

        def closeness(w: Node) -> tuple[bool, int, float, Node]:
            distance = abs((w.layer or 0) - (v.layer or 0))
            return self._alone[w] >= self.minimal_drop, distance, self._alone[w], w

        rest = sorted(set(others) - set(by_drop), key=closeness)
        return [*by_drop, *rest[: MAX_PARTNERS - N_PARTNERS_BY_DROP]]

    def _rank(self, v: Node, contexts: Sequence[NodeSet]) -> tuple[list[int], float]:
        """Rank contexts by a few pairs.

        Returns:
            The numbers of the contexts, the most promising first, and the largest drop.
        """
        with_v, drops = self._measure(v, contexts, min(CONTEXT_SCREENING_PAIRS, self._pairs))
        return self._sort(with_v, drops), max(drops)

    def _best_of(self, v: Node, ranked: Sequence[NodeSet]) -> ContextDrop:
        """Return the best of the first few contexts of a ranking."""
        contexts = list(ranked[:MAX_SCREENED])
        with_v, drops = self._measure(v, contexts, self._pairs)
        best = self._sort(with_v, drops)[0]
        return ContextDrop(contexts[best], drops[best])

    def _sort(self, with_v: Sequence[float], drops: Sequence[float]) -> list[int]:
        """Return the numbers of contexts by drop; of equal ones by what is left of the circuit."""
        step = max(self.minimal_drop / 2, MIN_IMPROVEMENT)
        return sorted(
            range(len(drops)), key=lambda n: (-round(drops[n] / step), -round(with_v[n], 9), n)
        )

    def _measure(
        self, v: Node, contexts: Sequence[NodeSet], pairs: int
    ) -> tuple[list[float], list[float]]:
        """Return f(C∖K) and the drop of a node, for each context."""
        sets = [
            node_set
            for context in contexts
            for node_set in (self.circuit - context, self.circuit - context - {v})
        ]
        values = self.f(sets, PROGRESS_LABEL, pairs)
        with_v: list[float] = values[0::2].tolist()
        drops: list[float] = (values[0::2] - values[1::2]).abs().tolist()
        return with_v, drops


def _larger(best: ContextDrop, other: ContextDrop) -> ContextDrop:
    """Return the larger drop; the other context must be better by more than rounding."""
    return other if other.drop > best.drop + MIN_IMPROVEMENT else best
