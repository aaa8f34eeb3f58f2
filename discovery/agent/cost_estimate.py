"""What a run will cost, before it is begun: sweeps from the plan of their rows, sets from their number.

The check and the sweeps are what the engine will count, to the row. How many sets the search and the controls need depends on what is
found; the estimate assumes a circuit of a third of the universe and one or two rounds of mending.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from discovery.agent.stages.localisation import DIRECTIONS, max_sweep_cost
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
SAMPLED_SETS = 12  # sets of each size that show what a set costs


@dataclass(frozen=True)
class CostEstimate:
    """Forward-pass equivalents of a run.

    Attributes:
        stages: stage -> forward-pass equivalents. spent: what the estimate itself cost (the cached passes).
    """

    forward_equivalents: float
    stages: Mapping[str, float]
    spent: float
    note: str

    def to_dict(self) -> dict[str, object]:
        """For --dry-run --json."""
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
    """Plan a run without running it (both sides of each discovery prompt are run once, to see which cells differ)."""
    engine = Engine(model, task.discovery, metric=metric, memory=memory, meter=Meter())
    nodes, pairs, held = len(model.info.nodes(universe)), len(task.discovery), len(task.heldout)
    for side in SIDES:
        engine.baseline(side)
    unseen = Engine(model, task.heldout, metric=metric, memory=memory)
    stages = {
        "check": sum(
            len(SIDES) * block.estimate_pass()
            for part in (engine, unseen)
            for _, block in part.blocks()
        )
    }
    sites: list[SiteName] = ["attn_out"] if model.info.attn_only else ["attn_out", "mlp_out"]
    most = max_sweep_cost(budget, exhaustive=exhaustive)
    stages["localise"] = _sweep_cost(engine, ["resid_pre"], DIRECTIONS, most)
    stages["components"] = _sweep_cost(engine, sites, DIRECTIONS, most)
    before = engine.meter.spent
    by_mean, singles = SetMetric(engine, "mean", universe), model.info.nodes(universe)
    ablated = [
        made for node in singles for made in (by_mean.everything - {node}, frozenset({node}))
    ]
    alone = by_mean.estimate([by_mean.everything, frozenset()]) + by_mean.estimate(ablated)
    singly = sum(estimate_node_effects(engine, direction, universe) for direction in DIRECTIONS)
    blocks = [block for _, block in engine.blocks()]
    anew = len(SIDES) * sum(block.estimate_pass() for block in blocks) if len(blocks) > 1 else 0.0
    stages["heads"] = singly + alone + engine.meter.spent - before + 2 * anew
    size = max(2, nodes // 3)
    a_set = _mean_set_cost(engine, universe, size) / pairs
    around = 2 * nodes + 2  # sets that (c) asks of one circuit
    contexts = size * (size - 1) // 2 + size * max(size - 2, 0)
    stages["candidate"] = a_set * 4 * nodes * pairs
    stages["mend"] = (
        a_set * pairs * (2 * (ASSUMED_MENDING_ROUNDS * around + contexts) + size * (size - 1) / 2)
    )
    stages["stability"] = STABILITY_BUDGET_SHARE * sum(stages.values())
    others = min(
        thresholds.MAX_ALTERNATIVES, math.comb(nodes, size) - 1
    )  # of a small model there are fewer
    stages["validate"] = a_set * (
        2 * held * (around + 2 * size) + 4 * others * min(thresholds.MAX_ALTERNATIVE_PAIRS, held)
    )
    stages["edges"] = pairs * 4.0 * (size + 2) * (size + 1) / 2 / max(model.info.n_layers, 1)
    stages["interpret"] = _sweep_cost(engine, ["head_out_by_position", *sites[1:]], ["noising"])
    total = sum(stages.values())
    note = "check, sweeps and single nodes as planned; the rest assumes a circuit of a third of the nodes: off by up to a factor of two"
    if anew:
        note += f"; the pairs do not fit in the memory together, so that the search runs them anew again and again, each time {anew:,.0f} more"
    if budget is not None and total > budget:
        note = f"the run ends at the budget of {budget:,.0f}, and would take about {total:,.0f}; {note}"
        total = budget
    return CostEstimate(total, stages, engine.meter.spent, note)


def _mean_set_cost(engine: Engine, universe: Universe, size: int) -> float:
    """What f of one set takes on average: rows begin at the first ablated layer, and a set is tried as often kept as ablated."""
    generator, found = random.Random("estimate"), []
    for ablation in EVIDENCE_ABLATIONS:
        sets = SetMetric(engine, ablation, universe)
        drawn = [
            frozenset(generator.sample(sets.universe, min(size, len(sets.universe))))
            for _ in range(SAMPLED_SETS)
        ]
        both = [*drawn, *(sets.everything - made for made in drawn)]
        found.append(sets.estimate(both) / len(both))
    return sum(found) / len(found)


def _sweep_cost(
    engine: Engine,
    sites: Sequence[SiteName],
    directions: Sequence[Direction],
    most: float | None = None,
) -> float:
    """Rows of some sweeps, and the cached passes that they bring about (made here, to see which cells differ)."""
    before = engine.meter.spent
    rows = sum(
        plan_sweep(engine, site, direction, most)[0] for site in sites for direction in directions
    )
    return rows + engine.meter.spent - before
