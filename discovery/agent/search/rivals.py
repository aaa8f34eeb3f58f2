"""Compares a circuit with rivals: sets of the same shape that do as well.

A rival has as many heads and as many MLPs in every layer. If it does as well, the search has not
failed: two heads may do the same work, for example. But if there are so many rivals that
condition (e) does not hold, then either a rival is the better circuit, or the circuit and the
rival together are. Both are tried. Another set replaces the circuit only if it has fewer faults,
or if (e) holds for it and not for the circuit. Otherwise the circuit stays, and the record shows
that (e) fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from discovery.agent.search.decision import Decision, format_nodes, stop_for_budget
from discovery.agent.search.faults import Order
from discovery.agent.search.fit import ROUNDING
from discovery.agent.search.mend import Mending
from discovery.agent.search.shrink import examine_all
from discovery.errors import BudgetError
from discovery.evaluation import (
    FaithfulnessByAblation,
    beats_alternatives,
    find_rivals,
    thresholds,
)
from discovery.graph import Control, EvidenceAblation
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

MAX_RIVALS = 2  # rivals that are tried as the circuit, the closest to f = 1 first


@dataclass(frozen=True)
class CandidateCircuit:
    """What is known of a set that might be the circuit.

    Attributes:
        order: how severe its faults by (a) to (d) are; see `Faults.order`.
        rivals: the layer-matched sets that do as well under either ablation, in forward order.
        controls: for each ablation, how it compares with layer-matched sets; None if there are no
            other such sets.
    """

    order: Order
    rivals: Sequence[NodeSet]
    controls: Mapping[EvidenceAblation, Control | None]

    @property
    def n_compared(self) -> int:
        """How many layer-matched sets it was compared with, the fewer of both ablations."""
        return min((control.n or 0) if control else 0 for control in self.controls.values())

    @property
    def is_better_than_alternatives(self) -> bool:
        """Whether condition (e) holds by layer under both ablations."""
        return all(
            control is not None and beats_alternatives(control)
            for control in self.controls.values()
        )

    def may_replace(self, circuit: CandidateCircuit) -> bool:
        """Whether this set is better than the circuit.

        It is if its faults are less severe, or if they are as severe and (e) holds for it and not
        for the circuit. In the second case it must have been compared with as many sets as the
        circuit, or with enough for a p-value: a set of nearly all nodes has hardly any alternative,
        so that having no rival says nothing for it.
        """
        if self.order != circuit.order:
            return self.order < circuit.order
        enough = self.n_compared >= min(circuit.n_compared, thresholds.MIN_ALTERNATIVES_FOR_P)
        return (
            self.is_better_than_alternatives and enough and not circuit.is_better_than_alternatives
        )


class RivalSearch:
    """Compares circuits with rivals, and mends the rivals."""

    def __init__(
        self, mending: Mending, f_by_ablation: FaithfulnessByAblation, ranking: Sequence[Node]
    ) -> None:
        """Prepare to compare.

        Args:
            mending: examines and mends sets.
            f_by_ablation: faithfulness on the pairs of the search.
            ranking: all nodes, the largest effect first.
        """
        self.mending = mending
        self.f_by_ablation = f_by_ablation
        self.ranking = ranking

    def assess(self, circuit: NodeSet) -> CandidateCircuit:
        """Find the faults and the rivals of a set.

        Raises:
            BudgetError: if the budget does not reach that far.
        """
        comparisons = {
            ablation: find_rivals(f, circuit, self.ranking, self.mending.seed, by_layer=True)
            for ablation, f in self.f_by_ablation.items()
        }
        rivals = {nodes for as_good, _ in comparisons.values() for nodes in as_good}
        return CandidateCircuit(
            order=examine_all(self.mending, circuit).order,
            rivals=sorted(rivals, key=sorted),
            controls={ablation: control for ablation, (_, control) in comparisons.items()},
        )

    def choose(self, circuit: NodeSet) -> NodeSet:
        """Return the circuit, or a better set among its rivals and their unions with it.

        Each rival and each union is mended first. If the budget ends, the best set by then is
        returned.
        """
        candidates: dict[NodeSet, CandidateCircuit] = {}
        try:
            own = self.assess(circuit)
            candidates[circuit] = own
            if not own.rivals or own.is_better_than_alternatives:
                return circuit
            for rival in self._sort_by_distance(own.rivals)[:MAX_RIVALS]:
                for start in (rival, circuit | rival):
                    mended = self.mending.run_silently(start)
                    if mended not in candidates:
                        candidates[mended] = self.assess(mended)
        except BudgetError as fault:
            self.mending.on_decision(stop_for_budget(fault))
        if not candidates:
            return circuit
        best = _choose_best(candidates, circuit)
        self.mending.on_decision(_describe_choice(candidates, circuit, best))
        return best

    def _sort_by_distance(self, sets: Sequence[NodeSet]) -> list[NodeSet]:
        """Return the sets by |1 − f|, summed over both ablations, the closest first."""
        values = [f(sets, "rivals").tolist() for f in self.f_by_ablation.values()]
        distance = {
            nodes: sum(abs(1 - value) for value in by_ablation)
            for nodes, *by_ablation in zip(sets, *values, strict=True)
        }
        return sorted(sets, key=lambda nodes: round(distance[nodes], ROUNDING))


def _describe_choice(
    candidates: Mapping[NodeSet, CandidateCircuit], circuit: NodeSet, best: NodeSet
) -> Decision:
    return Decision(
        {
            " ".join(map(str, sorted(nodes))): {
                ablation: _control_counts(control)
                for ablation, control in candidate.controls.items()
            }
            for nodes, candidate in candidates.items()
        },
        "keep the circuit" if best == circuit else f"change to {format_nodes(best)}",
        f"{len(candidates[circuit].rivals)} layer-matched sets are as good under either "
        "ablation; the numbers are of each set that was tried",
    )


def _choose_best(candidates: Mapping[NodeSet, CandidateCircuit], circuit: NodeSet) -> NodeSet:
    eligible = [
        nodes
        for nodes, candidate in candidates.items()
        if nodes == circuit or candidate.may_replace(candidates[circuit])
    ]
    return min(
        eligible,
        key=lambda nodes: (
            candidates[nodes].order,
            not candidates[nodes].is_better_than_alternatives,
            len(nodes),
            sorted(nodes),
        ),
    )


def _control_counts(control: Control | None) -> dict[str, int | None]:
    return {"as_good": control.as_good, "n": control.n} if control else {"as_good": 0, "n": 0}
