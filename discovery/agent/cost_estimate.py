"""What a run will cost, before it begins.

The cost of the behaviour check, the sweeps and the single nodes follows from the plan of their
rows. How many sets the search and the controls need depends on the circuit; the estimate assumes
a circuit of a third of the universe and one or two rounds of mending.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from discovery.agent.stages.localisation import DIRECTIONS, component_sites, max_sweep_cost
from discovery.agent.stages.stability import STABILITY_BUDGET_SHARE
from discovery.backends.base import Backend
from discovery.engine import SIDES, Engine, Meter
from discovery.evaluation import thresholds
from discovery.graph import EVIDENCE_ABLATIONS
from discovery.methods.ablation import SetMetric
from discovery.methods.patching import estimate_node_effects, plan_sweep
from discovery.sites import Direction, MetricName, SiteName, Universe
from discovery.tasks.task import Task

ASSUMED_MENDING_ROUNDS = 1.5
SAMPLED_SETS = 12  # sets that are drawn in order to see what a set costs on average


@dataclass(frozen=True)
class CostEstimate:
    """The estimated cost of a run, in forward-pass equivalents.

    Attributes:
        forward_equivalents: The cost of the whole run, or its budget if that is smaller.
        stages: The cost of each stage.
        spent: What making this estimate cost: the cached passes.
        note: How exact the estimate is, and what it assumes.
    """

    forward_equivalents: float
    stages: Mapping[str, float]
    spent: float
    note: str

    def to_dict(self) -> dict[str, object]:
        """Return the estimate as `discover --dry-run --json` prints it."""
        return {
            "forward_equivalents": self.forward_equivalents,
            "stages": dict(self.stages),
            "spent": self.spent,
            "note": self.note,
        }


def estimate_cost(
    model: Backend,
    task: Task,
    *,
    metric: MetricName | None = None,
    universe: Universe = "all",
    budget: float | None = None,
    memory: int | None = None,
    exhaustive: bool = False,
) -> CostEstimate:
    """Estimate the cost of `discover` with these arguments, without running it.

    Both sides of each discovery prompt are run once, to see which cells of a sweep differ.
    """
    engine = Engine(model, task.discovery, metric=metric, memory=memory, meter=Meter())
    for side in SIDES:
        engine.baseline(side)
    heldout = Engine(model, task.heldout, metric=metric, memory=memory)
    max_cost = max_sweep_cost(budget, exhaustive=exhaustive)
    components = component_sites(model.info)
    stages: dict[str, float] = {"check": _pass_cost([engine, heldout])}
    stages["localise"] = _sweep_cost(engine, ["resid_pre"], DIRECTIONS, max_cost)
    stages["components"] = _sweep_cost(engine, components, DIRECTIONS, max_cost)
    single_nodes = _single_node_cost(engine, universe)
    blocks = [block for _, block in engine.blocks()]
    repeated = 0.0
    if len(blocks) > 1:  # each measurement then runs the unchanged prompts of each block again
        repeated = len(SIDES) * sum(block.estimate_pass() for block in blocks)
    stages["heads"] = single_nodes + 2 * repeated
    stages |= _search_costs(engine, universe, len(task.heldout), sum(stages.values()))
    stages["interpret"] = _sweep_cost(
        engine, ["head_out_by_position", *components[1:]], ["noising"]
    )
    total = sum(stages.values())
    note = _explain_estimate(repeated, total, budget)
    if budget is not None and total > budget:
        total = budget
    return CostEstimate(total, stages, engine.meter.spent, note)


def _pass_cost(engines: Sequence[Engine]) -> float:
    """Return what one pass over both sides of all prompts costs."""
    return sum(
        len(SIDES) * block.estimate_pass() for engine in engines for _, block in engine.blocks()
    )


def _sweep_cost(
    engine: Engine,
    sites: Sequence[SiteName],
    directions: Sequence[Direction],
    max_cost: float | None = None,
) -> float:
    """Return what some sweeps cost: their rows, and the cached passes that planning them makes."""
    spent_before = engine.meter.spent
    rows = sum(
        plan_sweep(engine, site, direction, max_cost)[0]
        for site in sites
        for direction in directions
    )
    return rows + engine.meter.spent - spent_before


def _single_node_cost(engine: Engine, universe: Universe) -> float:
    """Return what every node alone costs, by patching and by mean ablation."""
    spent_before = engine.meter.spent
    mean_sets = SetMetric(engine, "mean", universe)
    ablated = [
        nodes
        for node in engine.backend.info.nodes(universe)
        for nodes in (mean_sets.everything - {node}, frozenset({node}))
    ]
    by_mean = mean_sets.estimate([mean_sets.everything, frozenset()]) + mean_sets.estimate(ablated)
    patched = sum(estimate_node_effects(engine, direction, universe) for direction in DIRECTIONS)
    return patched + by_mean + engine.meter.spent - spent_before


def _search_costs(
    engine: Engine, universe: Universe, n_heldout: int, cost_before: float
) -> dict[str, float]:
    """Return the cost of the stages from "candidate" to "edges", for a circuit of assumed size.

    Args:
        engine: The discovery pairs.
        universe: What can be ablated.
        n_heldout: The number of held-out pairs.
        cost_before: The cost of the stages before.
    """
    info = engine.backend.info
    n_nodes = len(info.nodes(universe))
    n_pairs = len(engine)
    size = max(2, n_nodes // 3)
    set_cost = _mean_set_cost(engine, universe, size) / n_pairs
    completeness_sets = 2 * n_nodes + 2  # what (c) measures for one circuit
    contexts = size * (size - 1) // 2 + size * max(size - 2, 0)  # what (d) measures
    mending = 2 * (ASSUMED_MENDING_ROUNDS * completeness_sets + contexts) + size * (size - 1) / 2
    candidate = set_cost * 4 * n_nodes * n_pairs
    mend = set_cost * n_pairs * mending
    n_alternatives = min(thresholds.MAX_ALTERNATIVES, math.comb(n_nodes, size) - 1)
    alternative_pairs = min(thresholds.MAX_ALTERNATIVE_PAIRS, n_heldout)
    validate = set_cost * (
        2 * n_heldout * (completeness_sets + 2 * size) + 4 * n_alternatives * alternative_pairs
    )
    return {
        "candidate": candidate,
        "mend": mend,
        "stability": STABILITY_BUDGET_SHARE * (cost_before + candidate + mend),
        "validate": validate,
        "edges": n_pairs * 4.0 * (size + 2) * (size + 1) / 2 / max(info.n_layers, 1),
    }


def _mean_set_cost(engine: Engine, universe: Universe, size: int) -> float:
    """Return the average cost of measuring one set on all pairs.

    The rows of a set begin at its first ablated layer, so the cost is averaged over sampled sets,
    each of them kept in one half of the cases and ablated in the other.
    """
    generator = random.Random("estimate")
    costs = []
    for ablation in EVIDENCE_ABLATIONS:
        sets = SetMetric(engine, ablation, universe)
        samples = [
            frozenset(generator.sample(sets.universe, min(size, len(sets.universe))))
            for _ in range(SAMPLED_SETS)
        ]
        complements = [sets.everything - sample for sample in samples]
        costs.append(sets.estimate([*samples, *complements]) / (2 * SAMPLED_SETS))
    return sum(costs) / len(costs)


def _explain_estimate(repeated: float, total: float, budget: float | None) -> str:
    note = (
        "check, sweeps and single nodes are as planned; the rest assumes a circuit of a third of "
        "the nodes and may be off by a factor of two"
    )
    if repeated:
        note += (
            "; the pairs do not fit in memory together, so that the search runs the unchanged "
            f"prompts again and again, each time {repeated:,.0f} more"
        )
    if budget is not None and total > budget:
        note = (
            f"the run ends at the budget of {budget:,.0f}, and would take about {total:,.0f}; "
            + note
        )
    return note
