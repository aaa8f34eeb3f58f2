"""Is there another circuit, with as many nodes of each kind in each layer, that does as well? Then this one is not *the* circuit.

A rival is no failure of the search but a finding: two heads do the same work. Where so many do that condition (e) does not hold, either a
rival is the better circuit, or the two together are: both are tried. Another set replaces the circuit where (e) holds for it; otherwise
the circuit stays, and (e) fails in the open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from discovery.agent.search.fit import Both
from discovery.agent.search.mend import SPENT, Say, examine, mend, names_of
from discovery.agent.search.shrink import shrink
from discovery.errors import BudgetError
from discovery.evaluation import better, rivals, thresholds
from discovery.graph import Control, EvidenceAblation
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

MOST = 2  # rivals looked into, the closest first


@dataclass(frozen=True)
class Option:
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
    def tried(self) -> int:
        """How many layer-matched sets it was compared with."""
        return min((control.n or 0) if control else 0 for control in self.controls.values())

    @property
    def stands_out(self) -> bool:
        """Condition (e) holds by layer, under both ablations."""
        return all(control is not None and better(control) for control in self.controls.values())

    def may_replace(self, circuit: Option) -> bool:
        """It has fewer faults; or as few, and (e) holds for it and not for the circuit.

        As many sets as with the circuit, or enough for a p, must have been compared: near the whole model hardly any other set is left,
        and having no rival there is no merit.
        """
        if self.weight != circuit.weight:
            return self.weight < circuit.weight
        enough = self.tried >= min(circuit.tried, thresholds.FEWEST_CONTROLS)
        return self.stands_out and enough and not circuit.stands_out


def option(both: Both, circuit: NodeSet, screened: Sequence[Node], seed: int) -> Option:
    """Hold (a) to (d) and layer-matched sets against a set."""
    against = {ablation: rivals(f, circuit, screened, seed, by_layer=True) for ablation, f in both.items()}
    found = sorted({made for others, _ in against.values() for made in others}, key=sorted)
    return Option(examine(both, circuit).weight, found, {ablation: control for ablation, (_, control) in against.items()})


def settle(both: Both, circuit: NodeSet, screened: Sequence[Node], seed: int, say: Say) -> NodeSet:
    """The circuit, or a better one among its rivals and their unions with it; where the budget ends, the best found by then."""
    options: dict[NodeSet, Option] = {}
    try:
        own = options[circuit] = option(both, circuit, screened, seed)
        if not own.rivals or (own.stands_out and own.weight == (0.0, 0)):
            return circuit
        for rival in _closest(both, own.rivals)[:MOST]:
            for start in (rival, circuit | rival):
                made = _mended(both, start)
                if made not in options:
                    options[made] = option(both, made, screened, seed)
    except BudgetError as spent:
        say({}, SPENT, spent.cause)
    if not options:
        return circuit
    fair = [made for made in options if made == circuit or options[made].may_replace(options[circuit])]
    best = min(fair, key=lambda made: (options[made].weight, not options[made].stands_out, len(made), sorted(made)))
    measured: dict[str, object] = {
        " ".join(map(str, sorted(made))): {ablation: _told(control) for ablation, control in found.controls.items()}
        for made, found in options.items()
    }
    change = "keep the circuit" if best == circuit else f"change to {names_of(best)}"
    why = f"{len(options[circuit].rivals)} layer-matched sets are as good under either ablation; each set that was looked at is given"
    say(measured, change, why)
    return best


def _closest(both: Both, sets: Sequence[NodeSet]) -> list[NodeSet]:
    """The closest to f = 1 first, summed over ablations."""
    values = [f(sets, "rivals").tolist() for f in both.values()]
    far = {made: sum(abs(1 - value) for value in found) for made, *found in zip(sets, *values, strict=True)}
    return sorted(sets, key=lambda made: round(far[made], 9))


def _mended(both: Both, start: NodeSet) -> NodeSet:
    """Mended without a word.

    Raises:
        BudgetError: where the budget ends before the mending does.
    """
    cut: list[str] = []
    made = mend(both, start, lambda _, concluded, why: cut.append(why) if concluded == SPENT else None)
    if cut:
        raise BudgetError(cut[0], "Give a larger budget.")
    return made


def _told(control: Control | None) -> dict[str, int | None]:
    return {"as_good": control.as_good, "n": control.n} if control else {"as_good": 0, "n": 0}


def select(both: Both, start: NodeSet, screened: Sequence[Node], seed: int, say: Say) -> NodeSet:
    """The whole selection after the curve: mend, leave out what is not needed, then settle with rivals."""
    return settle(both, shrink(both, mend(both, start, say), say), screened, seed, say)
