"""Is there another circuit, with as many nodes of each kind in each layer, that does as well? Then this one is not *the* circuit.

A rival is no failure of the search but a finding: two heads do the same work. Either the rival is the better circuit, or the two
together are. Both are tried, and the circuit that has the fewest faults and rivals is kept; where none does better with enough sets to be
compared with, the circuit stays, and condition (e) fails in the open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from discovery.agent.fit import Both, distance, fits
from discovery.agent.mend import SPENT, Say, examine, mend, silent
from discovery.agent.shrink import shrink
from discovery.errors import BudgetError
from discovery.evaluation import rivals, thresholds
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

MOST = 2  # rivals looked into, the closest first


@dataclass(frozen=True)
class Option:
    """A set that might be the circuit.

    Attributes:
        weight: what (a) to (d) hold against it.
        rivals: layer-matched sets that are as good under either ablation, the closest to f = 1 first.
        tried: how many layer-matched sets it was compared with.
    """

    weight: tuple[float, int]
    rivals: Sequence[NodeSet]
    tried: int

    def may_replace(self, circuit: Option) -> bool:
        """It has fewer faults, or no more and is compared with enough sets for the lack of rivals to say something.

        Near the whole model hardly any other set is left: there, having no rival is no merit.
        """
        enough = self.tried >= min(circuit.tried, thresholds.FEWEST_CONTROLS)
        return self.weight < circuit.weight or (self.weight == circuit.weight and enough)


def option(both: Both, circuit: NodeSet, screened: Sequence[Node], seed: int) -> Option:
    """Hold (a) to (d) and layer-matched sets against a set."""
    against = [rivals(f, circuit, screened, seed, by_layer=True) for f in both.values()]
    ordered = sorted({made for found, _, _ in against for made in found}, key=sorted)
    far = {made: distance(fit) for made, fit in zip(ordered, fits(both, ordered, "rivals"), strict=True)} if ordered else {}
    closest = sorted(ordered, key=lambda made: round(far[made], 9))
    return Option(examine(both, circuit).weight, closest, against[0][1])


def settle(both: Both, circuit: NodeSet, screened: Sequence[Node], seed: int, say: Say) -> NodeSet:
    """The circuit, or a better one among its rivals and their unions with it; where the budget ends, the best found by then."""
    options: dict[NodeSet, Option] = {}
    try:
        options[circuit] = option(both, circuit, screened, seed)
        if not options[circuit].rivals:
            return circuit
        for rival in options[circuit].rivals[:MOST]:
            for start in (rival, circuit | rival):
                made = mend(both, start, silent)
                if made not in options:
                    options[made] = option(both, made, screened, seed)
    except BudgetError as spent:
        say({}, SPENT, spent.cause)
    if not options:
        return circuit
    fair = [made for made in options if options[made].may_replace(options[circuit])]
    best = min(fair, key=lambda made: (options[made].weight, len(options[made].rivals), len(made), sorted(made)))
    measured: dict[str, object] = {
        " ".join(map(str, sorted(made))): {"as_good": len(found.rivals), "n": found.tried} for made, found in options.items()
    }
    names = ", ".join(str(node) for node in sorted(best))
    change = "keep the circuit" if best == circuit else f"change to {names}"
    why = f"{len(options[circuit].rivals)} layer-matched sets are as good under one ablation; those of each set looked at are counted"
    say(measured, change, why)
    return best


def select(both: Both, start: NodeSet, screened: Sequence[Node], seed: int, say: Say) -> NodeSet:
    """The whole selection after the curve: mend, leave out what is not needed, then settle with rivals."""
    return settle(both, shrink(both, mend(both, start, say), say), screened, seed, say)
