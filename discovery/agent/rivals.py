"""Is there another circuit, with as many nodes of each kind in each layer, that does as well? Then this one is not *the* circuit.

A rival is no failure of the search but a finding: two heads do the same work. Either the rival is the better circuit, or the two
together are. Both are tried, and the circuit that has the fewest faults and rivals is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from discovery.agent.fit import Both, distance, fits
from discovery.agent.mend import SPENT, Say, examine, mend, silent
from discovery.agent.shrink import shrink
from discovery.errors import BudgetError
from discovery.evaluation import rivals
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

MOST = 2  # rivals looked into, the closest first


def layer_rivals(both: Both, circuit: NodeSet, screened: Sequence[Node], seed: int) -> list[NodeSet]:
    """Layer-matched sets that are as good under either ablation, the closest to f = 1 first."""
    found = {made: None for f in both.values() for made in rivals(f, circuit, screened, seed, by_layer=True)[0]}
    ordered = sorted(found, key=sorted)
    far = {made: distance(fit) for made, fit in zip(ordered, fits(both, ordered, "rivals"), strict=True)} if ordered else {}
    return sorted(ordered, key=lambda made: round(far[made], 9))


def settle(both: Both, circuit: NodeSet, screened: Sequence[Node], seed: int, say: Say) -> NodeSet:
    """The circuit, or a better one among its rivals and their unions with it; where the budget ends, the best found by then."""
    options: dict[NodeSet, tuple[tuple[float, int], int]] = {}  # faults, then rivals
    try:
        against = layer_rivals(both, circuit, screened, seed)
        if not against:
            return circuit
        options[circuit] = examine(both, circuit).weight, len(against)
        for rival in against[:MOST]:
            for start in (rival, circuit | rival):
                made = mend(both, start, silent)
                if made not in options:
                    options[made] = examine(both, made).weight, len(layer_rivals(both, made, screened, seed))
    except BudgetError as spent:
        say({}, SPENT, spent.cause)
    if not options:
        return circuit
    best = min(options, key=lambda made: (*options[made], len(made), sorted(made)))
    measured: dict[str, object] = {" ".join(map(str, sorted(made))): count for made, (_, count) in options.items()}
    names = ", ".join(str(node) for node in sorted(best))
    change = "keep the circuit" if best == circuit else f"change to {names}"
    why = f"{options[circuit][1]} layer-matched sets are as good under one ablation; rivals of each set looked at are counted"
    say(measured, change, why)
    return best


def select(both: Both, start: NodeSet, screened: Sequence[Node], seed: int, say: Say) -> NodeSet:
    """The whole selection after the curve: mend, leave out what is not needed, then settle with rivals."""
    return settle(both, shrink(both, mend(both, start, say), say), screened, seed, say)
