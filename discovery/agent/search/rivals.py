"""Is there another circuit, with as many nodes of each kind in each layer, that does as well? Then this one is not *the* circuit.

A rival is no failure of the search but a finding: two heads do the same work. Where so many do that condition (e) does not hold, either a
rival is the better circuit, or the two together are: both are tried. Another set replaces the circuit where (e) holds for it; otherwise
the circuit stays, and (e) fails in the open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from discovery.agent.search.mend import STOPPED_BY_BUDGET, OnDecision, find_faults, mend, names_of
from discovery.agent.search.shrink import shrink
from discovery.errors import BudgetError
from discovery.evaluation import FaithfulnessByAblation, beats_alternatives, find_rivals, thresholds
from discovery.graph import Control, EvidenceAblation
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

MAX_RIVALS = 2  # rivals looked into, the closest first


@dataclass(frozen=True)
class CandidateCircuit:
    """A set that might be the circuit.

    Attributes:
        weight: what (a) to (d) hold against it.
        rivals: layer-matched sets that are as good under either ablation, in forward order.
        controls: what layer-matched sets say of it, by ablation; None where there are no others.
    """

    weight: tuple[float, int]
    rivals: Sequence[NodeSet]
    controls: Mapping[EvidenceAblation, Control | None]

    @property
    def n_compared(self) -> int:
        """How many layer-matched sets it was compared with."""
        return min((control.n or 0) if control else 0 for control in self.controls.values())

    @property
    def is_better_than_alternatives(self) -> bool:
        """Condition (e) holds by layer, under both ablations."""
        return all(
            control is not None and beats_alternatives(control)
            for control in self.controls.values()
        )

    def may_replace(self, circuit: CandidateCircuit) -> bool:
        """It has fewer faults; or as few, and (e) holds for it and not for the circuit.

        As many sets as with the circuit, or enough for a p, must have been compared: near the whole model hardly any other set is left,
        and having no rival there is no merit.
        """
        if self.weight != circuit.weight:
            return self.weight < circuit.weight
        enough = self.n_compared >= min(circuit.n_compared, thresholds.MIN_ALTERNATIVES_FOR_P)
        return (
            self.is_better_than_alternatives and enough and not circuit.is_better_than_alternatives
        )


def assess_candidate(
    both: FaithfulnessByAblation, circuit: NodeSet, ranking: Sequence[Node], seed: int
) -> CandidateCircuit:
    """Hold (a) to (d) and layer-matched sets against a set."""
    against = {
        ablation: find_rivals(f, circuit, ranking, seed, by_layer=True)
        for ablation, f in both.items()
    }
    found = sorted({made for others, _ in against.values() for made in others}, key=sorted)
    return CandidateCircuit(
        find_faults(both, circuit).severity,
        found,
        {ablation: control for ablation, (_, control) in against.items()},
    )


def choose_among_rivals(
    both: FaithfulnessByAblation,
    circuit: NodeSet,
    ranking: Sequence[Node],
    seed: int,
    say: OnDecision,
) -> NodeSet:
    """The circuit, or a better one among its rivals and their unions with it; where the budget ends, the best found by then."""
    options: dict[NodeSet, CandidateCircuit] = {}
    try:
        own = options[circuit] = assess_candidate(both, circuit, ranking, seed)
        if not own.rivals or (own.is_better_than_alternatives and own.weight == (0.0, 0)):
            return circuit
        for rival in _sort_by_distance(both, own.rivals)[:MAX_RIVALS]:
            for start in (rival, circuit | rival):
                made = _mend_silently(both, start)
                if made not in options:
                    options[made] = assess_candidate(both, made, ranking, seed)
    except BudgetError as spent:
        say({}, STOPPED_BY_BUDGET, spent.cause)
    if not options:
        return circuit
    fair = [
        made for made in options if made == circuit or options[made].may_replace(options[circuit])
    ]
    best = min(
        fair,
        key=lambda made: (
            options[made].weight,
            not options[made].is_better_than_alternatives,
            len(made),
            sorted(made),
        ),
    )
    measured: dict[str, object] = {
        " ".join(map(str, sorted(made))): {
            ablation: _control_counts(control) for ablation, control in found.controls.items()
        }
        for made, found in options.items()
    }
    change = "keep the circuit" if best == circuit else f"change to {names_of(best)}"
    why = f"{len(options[circuit].rivals)} layer-matched sets are as good under either ablation; each set that was looked at is given"
    say(measured, change, why)
    return best


def _sort_by_distance(both: FaithfulnessByAblation, sets: Sequence[NodeSet]) -> list[NodeSet]:
    """The closest to f = 1 first, summed over ablations."""
    values = [f(sets, "rivals").tolist() for f in both.values()]
    far = {
        made: sum(abs(1 - value) for value in found)
        for made, *found in zip(sets, *values, strict=True)
    }
    return sorted(sets, key=lambda made: round(far[made], 9))


def _mend_silently(both: FaithfulnessByAblation, start: NodeSet) -> NodeSet:
    """Mended without a word.

    Raises:
        BudgetError: where the budget ends before the mending does.
    """
    cut: list[str] = []
    made = mend(
        both,
        start,
        lambda _, concluded, why: cut.append(why) if concluded == STOPPED_BY_BUDGET else None,
    )
    if cut:
        raise BudgetError(cut[0], "Give a larger budget.")
    return made


def _control_counts(control: Control | None) -> dict[str, int | None]:
    return {"as_good": control.as_good, "n": control.n} if control else {"as_good": 0, "n": 0}


def search_circuit(
    both: FaithfulnessByAblation,
    start: NodeSet,
    ranking: Sequence[Node],
    seed: int,
    say: OnDecision,
) -> NodeSet:
    """The whole selection after the curve: mend, leave out what is not needed, then settle with rivals."""
    return choose_among_rivals(both, shrink(both, mend(both, start, say), say), ranking, seed, say)
