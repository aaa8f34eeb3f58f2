"""Of the sets against which no more is held, the smallest: what mending added on its way and no longer needs is left out again.

Mending follows one fault at a time. It can add two nodes for two faults where a third, added later, does for both; each is then needed
in some context (condition d), so none is dropped for being idle, and yet the circuit meets every condition without it.
"""

from __future__ import annotations

from discovery.agent.fit import Both, distance, excess, fits
from discovery.agent.mend import SPENT, Say, examine
from discovery.errors import BudgetError
from discovery.evaluation import thresholds
from discovery.methods.ablation import NodeSet
from discovery.sites import Node


def shrink(both: Both, circuit: NodeSet, say: Say) -> NodeSet:
    """Leave out single nodes while no more is held against what is left; where the budget ends, as far as it came."""
    try:
        allowed = examine(both, circuit).weight
        while (node := _spare(both, circuit, allowed)) is not None:
            why = "without it no more is held against the circuit by (a) to (d)"
            say({"nodes": len(circuit) - 1}, f"leave out {node}", why)
            circuit = circuit - {node}
    except BudgetError as spent:
        say({}, SPENT, spent.cause)
    return circuit


def _spare(both: Both, circuit: NodeSet, allowed: tuple[float, int]) -> Node | None:
    """A node that the circuit does not need, the one whose absence is least felt."""
    nodes = sorted(circuit) if len(circuit) > 1 else []
    low, high = thresholds.FAITHFUL
    kept = [f([circuit - {node} for node in nodes], "shrink").tolist() for f in both.values()] if nodes else []
    faithful = [node for node, *values in zip(nodes, *kept, strict=True) if all(low <= value <= high for value in values)]
    found = dict(zip(faithful, fits(both, [circuit - {node} for node in faithful], "shrink"), strict=True))
    good = sorted((node for node in faithful if excess(found[node]) == 0), key=lambda node: (round(distance(found[node]), 9), node))
    return next((node for node in good if examine(both, circuit - {node}).weight <= allowed), None)
