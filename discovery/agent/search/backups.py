"""Finds the nodes that do the work of an ablated one: what closes a gap of condition (c).

If the model without u does better than the circuit without u, nodes outside the circuit do the work
of u. They may be one backup, several that act only together, or a long tail of nodes of which each
does a little. Candidates are first shortened to the first few that are enough together. Of these,
the ones that help alone are put first, as many as are enough. What is left and does not help alone
is reduced to a smallest part by leaving out ever smaller groups. This is delta debugging (Zeller
and Hildebrandt 2002, "Simplifying and isolating failure-inducing input"). It takes about
k · log2(n) measurements for k nodes among n, and it also finds nodes that act only together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from discovery.agent.search.fit import WITH_MARGIN, Bounds
from discovery.agent.search.measured import SearchFunctions
from discovery.graph import EvidenceAblation
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

LABEL = "backups"
MAX_LARGEST_GAPS = 3  # nodes whose gaps are looked at before others are left out
LARGE_GAP_SHARE = 0.5  # of the bound; smaller gaps are not looked at then
MIN_HELP = 0.004  # a candidate that closes less of a gap alone is not known to help


@dataclass(frozen=True)
class Backups:
    """Nodes that close gaps.

    Attributes:
        nodes: the nodes, in the order in which they were found.
        behind: for each of them, the node whose work it does.
        gaps: the gaps that they close: for each such node, its gap without them.
    """

    nodes: list[Node] = field(default_factory=list)
    behind: dict[Node, Node] = field(default_factory=dict)
    gaps: dict[Node, float] = field(default_factory=dict)


def find_all_backups(
    functions: SearchFunctions,
    circuit: NodeSet,
    gaps: Mapping[Node, float],
    candidates: Sequence[Node],
) -> Backups:
    """Find nodes that close every gap which the candidates can close, the largest gap first.

    After each find, the other gaps are measured again, since one backup often closes several.

    Args:
        functions: f under each ablation.
        circuit: the circuit.
        gaps: |f(C∖u) − f(U∖u)| of each node u of the circuit, the larger of both ablations.
        candidates: nodes outside the circuit, the most promising first.

    Raises:
        BudgetError: if the budget does not reach that far.
    """
    backups = Backups()
    waiting = {u: gap for u, gap in gaps.items() if gap > WITH_MARGIN.gap_in}
    while waiting:
        ablated = min(waiting, key=lambda u: (-waiting[u], u))
        gap = waiting.pop(ablated)
        remaining = [v for v in candidates if v not in backups.behind]
        extended = circuit | set(backups.nodes)
        nodes = find_backups(functions, extended, ablated, remaining) if remaining else []
        if not nodes:
            continue
        backups.nodes.extend(nodes)
        backups.behind.update(dict.fromkeys(nodes, ablated))
        backups.gaps[ablated] = gap
        again = measure_gaps_in(functions, extended | set(nodes), sorted(waiting))
        waiting = {u: gap for u, gap in again.items() if gap > WITH_MARGIN.gap_in}
    return backups


def find_backups(
    functions: SearchFunctions, circuit: NodeSet, ablated: Node, candidates: Sequence[Node]
) -> list[Node]:
    """Find the nodes that do the work of an ablated one: a small set that closes its gap (c).

    Args:
        functions: f under each ablation.
        circuit: the circuit.
        ablated: the node u of the circuit whose gap |f(C∖u) − f(U∖u)| is too large.
        candidates: nodes outside the circuit, the most promising first.

    Returns:
        The nodes; empty if all candidates together do not close the gap.

    Raises:
        BudgetError: if the budget does not reach that far.
    """
    gap = _Gap(functions, circuit, ablated)
    if not gap.is_closed_by([frozenset(candidates)])[0]:
        return []
    promising = shorten(candidates, gap.is_closed_by)
    if len(promising) == 1:
        return promising
    help_of = gap.measure_help(promising)
    by_help = sorted(promising, key=lambda v: -round(help_of[v], 6))
    few = shorten(by_help, gap.is_closed_by)
    helpful = [v for v in few if help_of[v] >= MIN_HELP]
    others = [v for v in few if help_of[v] < MIN_HELP]
    if not others:
        return few
    if gap.is_closed_by([frozenset(helpful)])[0]:
        return helpful

    def are_enough(parts: Sequence[NodeSet]) -> list[bool]:
        return gap.is_closed_by([part.union(helpful) for part in parts])

    return [*helpful, *find_sufficient_subset(others, are_enough)]


@dataclass(frozen=True)
class _Gap:
    """The gap |f(C∖u) − f(U∖u)| of one node, and what closes it."""

    functions: SearchFunctions
    circuit: NodeSet
    ablated: Node

    def is_closed_by(self, additions: Sequence[NodeSet]) -> list[bool]:
        """Return for each set whether the gap is below the bound when it joins the circuit."""
        is_closed = [True] * len(additions)
        for gaps in self._measure(additions).values():
            is_closed = [
                old and gap <= WITH_MARGIN.gap_in for old, gap in zip(is_closed, gaps, strict=True)
            ]
        return is_closed

    def measure_help(self, nodes: Sequence[Node]) -> dict[Node, float]:
        """Return by how much each node alone reduces the gap, on a few pairs.

        It is the sum over the ablations under which the gap is too large.
        """
        broken = self.circuit - {self.ablated}
        help_of = dict.fromkeys(nodes, 0.0)
        for f in self.functions.values():
            sets = [broken, f.everything - {self.ablated}, *(broken | {v} for v in nodes)]
            before, intact, *after = f.screen(sets, LABEL).tolist()
            if abs(before - intact) <= WITH_MARGIN.gap_in:
                continue
            for v, value in zip(nodes, after, strict=True):
                help_of[v] += abs(before - intact) - abs(value - intact)
        return help_of

    def _measure(self, additions: Sequence[NodeSet]) -> dict[EvidenceAblation, list[float]]:
        broken = self.circuit - {self.ablated}
        return {
            ablation: f.differences(
                [broken | added for added in additions],
                [f.everything - {self.ablated}] * len(additions),
                [WITH_MARGIN.gap_in],
                LABEL,
                relative_to=(self.circuit, f.everything),
            )
            .abs()
            .tolist()
            for ablation, f in self.functions.items()
        }


def measure_gaps_in(
    functions: SearchFunctions, circuit: NodeSet, nodes: Sequence[Node] | None = None
) -> dict[Node, float]:
    """Return |f(C∖u) − f(U∖u)| of nodes u of a circuit, the larger of both ablations.

    Args:
        functions: f under each ablation.
        circuit: the circuit.
        nodes: the nodes; None means all nodes of the circuit.

    Raises:
        BudgetError: if the budget does not reach that far.
    """
    nodes = sorted(circuit) if nodes is None else nodes
    by_ablation = [
        f.differences(
            [circuit - {u} for u in nodes],
            [f.everything - {u} for u in nodes],
            [WITH_MARGIN.gap_in],
            "completeness",
            relative_to=(circuit, f.everything),
        )
        .abs()
        .tolist()
        for f in functions.values()
    ]
    return {u: max(gaps[n] for gaps in by_ablation) for n, u in enumerate(nodes)}


def keeps_largest_gaps(
    functions: SearchFunctions, remaining: NodeSet, gaps: Mapping[Node, float], bounds: Bounds
) -> bool:
    """Return whether the largest gaps stay within their bound when nodes are left out.

    It spares measuring all gaps, since the largest grow beyond the bound first when f(C) sinks.

    Args:
        functions: f under each ablation.
        remaining: what is left of the circuit.
        gaps: the gap of each node before; one beyond the bound must only not grow.
        bounds: the bounds.

    Raises:
        BudgetError: if the budget does not reach that far.
    """
    large = [u for u in remaining if gaps[u] > LARGE_GAP_SHARE * bounds.gap_in]
    largest = sorted(large, key=lambda u: (-gaps[u], u))[:MAX_LARGEST_GAPS]
    measured = measure_gaps_in(functions, remaining, largest)
    return all(gap <= max(bounds.gap_in, gaps[u]) for u, gap in measured.items())


def find_sufficient_subset(
    nodes: Sequence[Node], are_enough: Callable[[Sequence[NodeSet]], Sequence[bool]]
) -> list[Node]:
    """Find a subset that is enough, and of which no node can be left out.

    Args:
        nodes: the nodes, the most promising first; together they are enough.
        are_enough: says of each of several sets whether it is enough.

    Returns:
        The subset, in the order of `nodes`. If `are_enough` is not monotonic, it may not be the
        smallest.
    """
    kept = shorten(nodes, are_enough)
    n_parts = 2
    while len(kept) > 1:
        parts = _split(kept, min(n_parts, len(kept)))
        outcomes = are_enough([frozenset(kept) - set(part) for part in parts])
        # The least promising part that can be left out goes first.
        spare = next((n for n in reversed(range(len(parts))) if outcomes[n]), None)
        if spare is not None:
            left_out = set(parts[spare])
            kept = [node for node in kept if node not in left_out]
            n_parts = max(n_parts - 1, 2)
        elif n_parts >= len(kept):
            break
        else:
            n_parts *= 2
    return kept


def shorten(
    nodes: Sequence[Node], are_enough: Callable[[Sequence[NodeSet]], Sequence[bool]]
) -> list[Node]:
    """Return a short beginning of a list that is enough, found by bisection.

    Args:
        nodes: the nodes, the most promising first; together they are enough.
        are_enough: says of each of several sets whether it is enough.
    """
    low, high = 0, len(nodes)  # the first `low` nodes are not enough, the first `high` are
    while high - low > 1:
        middle = (low + high) // 2
        if are_enough([frozenset(nodes[:middle])])[0]:
            high = middle
        else:
            low = middle
    return list(nodes[:high])


def _split(nodes: list[Node], n_parts: int) -> list[list[Node]]:
    """Split a list into parts of about equal length."""
    edges = [len(nodes) * n // n_parts for n in range(n_parts + 1)]
    return [nodes[low:high] for low, high in itertools.pairwise(edges)]
