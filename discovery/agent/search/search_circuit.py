"""Searches for the circuit on discovery pairs, under both ablations. This is the whole algorithm:

1. `rank_nodes` sorts all nodes by |noising| + |denoising| of each node alone.
2. `choose_start` takes a quarter more nodes of the ranking than meet (a) and (b), else all nodes.
3. `Descent` leaves weak nodes out, many at a time, and takes back what others need as a backup.
4. `Mending` adds what (c) misses, and what (a) and (b) need, until there is nothing more to add.
   Then the descent goes on; nodes that were added stay.
5. `shrink` drops single nodes of a small circuit while no fault grows, following 5 sets of each
   size. Then the nodes that no context needs (d) are dropped, if no other fault grows.
6. If C has at most 16 nodes, `RivalSearch` mends up to 2 layer-matched sets that do as well, and
   their unions with C. One of them replaces C if it has fewer faults, or if (e) holds for it and
   not for C.

All steps ask for a margin to the bounds of the conditions (see `fit`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from discovery.agent.search.backups import keeps_largest_gaps
from discovery.agent.search.decision import Decision, OnDecision, format_nodes, stop_for_budget
from discovery.agent.search.descend import Descent
from discovery.agent.search.faults import Faults
from discovery.agent.search.fit import (
    MAX_SMALL_CIRCUIT,
    PLAIN,
    WITH_MARGIN,
    measure_fits,
    total_excess,
)
from discovery.agent.search.measured import SearchFunctions
from discovery.agent.search.mend import Mending
from discovery.agent.search.rivals import RivalSearch
from discovery.agent.search.shrink import examine_all, shrink
from discovery.errors import BudgetError
from discovery.evaluation import FaithfulnessByAblation
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

MAX_TURNS = 6  # of descending and mending


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """What a search found.

    Attributes:
        circuit: the best set. If the budget ended, this is the best set by then.
        drop_shares: for each node of the circuit, a lower bound on its largest drop as a share of δ
            (d); empty if that was not measured.
    """

    circuit: NodeSet
    drop_shares: Mapping[Node, float] = field(default_factory=dict)


def search_circuit(
    functions: SearchFunctions,
    start: NodeSet,
    ranking: Sequence[Node],
    seed: int,
    on_decision: OnDecision,
    rivals_by: FaithfulnessByAblation | None = None,
) -> SearchOutcome:
    """Search for the circuit from a first set: steps 3 to 6 of the algorithm.

    Args:
        functions: f under each ablation, on the pairs of the search or on a resample of them.
        start: the set to begin with; see `fit.choose_start`.
        ranking: all nodes, the largest effect first.
        seed: the seed of what is drawn at random.
        on_decision: called with each decision of the search.
        rivals_by: faithfulness by which rivals are compared; None leaves step 6 out.
    """
    mending = Mending(functions, ranking, seed, on_decision)
    search = _Search(mending, start)
    try:
        search.settle()
        search.circuit = shrink(mending, search.circuit)
        search.drop_unneeded()
        if rivals_by is not None and len(search.circuit) <= MAX_SMALL_CIRCUIT:
            search.circuit = RivalSearch(mending, rivals_by, ranking).choose(search.circuit)
        examine_all(mending, search.circuit)
    except BudgetError as fault:
        on_decision(stop_for_budget(fault, {"sets looked at": len(mending.faults_of)}))
    faults = mending.faults_of.get(search.circuit)
    return SearchOutcome(
        circuit=search.circuit, drop_shares=faults.drop_shares if faults is not None else {}
    )


@dataclass
class _Search:
    mending: Mending
    circuit: NodeSet

    def settle(self) -> None:
        """Descend and mend in turns until neither changes anything."""
        mending = self.mending
        descent = Descent(mending.functions, mending.on_decision, self.circuit)
        for _ in range(MAX_TURNS):
            before = self.circuit
            try:
                descent.run()
            finally:
                self.circuit = descent.circuit
                mending.contexts.update(descent.contexts)
            mended = mending.run(self.circuit)
            descent.required.update(mended - self.circuit)
            descent.circuit = self.circuit = mended
            if mended == before:
                break

    def drop_unneeded(self) -> None:
        """Drop the nodes that no context needs, as many of the least needed as faults allow.

        Nodes go as well that are needed by less than the margin.
        """
        while True:
            faults = examine_all(self.mending, self.circuit)
            unneeded = faults.unneeded_nodes(PLAIN)
            if not unneeded:
                unneeded = faults.unneeded_nodes(WITH_MARGIN)
            smaller = [self.circuit - group for group in _halve(unneeded)]
            smaller = [nodes for nodes in smaller if nodes]
            better = next(
                (
                    nodes
                    for nodes in self._keep_hopeful(smaller, faults)
                    if examine_all(self.mending, nodes).order < faults.order
                ),
                None,
            )
            if better is None:
                return
            self.mending.on_decision(
                Decision(
                    {"nodes": len(better)},
                    f"drop {format_nodes(self.circuit - better)}",
                    "no context needs it (condition d), and no other fault grows",
                )
            )
            self.circuit = better

    def _keep_hopeful(self, sets: Sequence[NodeSet], faults: Faults) -> list[NodeSet]:
        """Return the sets that miss (a), (b) and the largest gaps no more than the circuit does."""
        functions = self.mending.functions
        fits = measure_fits(functions, sets, "unneeded nodes")
        allowed = faults.excess(PLAIN)
        return [
            nodes
            for nodes, fit in zip(sets, fits, strict=True)
            if total_excess(fit, PLAIN) <= allowed
            and keeps_largest_gaps(functions, nodes, faults.gap_in, PLAIN)
        ]


def _halve(nodes: Sequence[Node]) -> list[NodeSet]:
    """Return all nodes, the first half of them, a quarter, and so on down to the first one."""
    groups = []
    size = len(nodes)
    while size:
        groups.append(frozenset(nodes[:size]))
        size //= 2
    return groups
