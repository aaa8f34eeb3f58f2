"""What a run will cost, before it is begun: sweeps from the plan of their rows, sets from their number.

The check and the sweeps are what the engine will count, to the row. How many sets the search and the controls need depends on what is
found; the estimate assumes a circuit of a third of the universe and one or two rounds of mending.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from discovery.agent.stages.stability import SHARE
from discovery.backends.base import Backend
from discovery.engine import Engine, Meter, Side
from discovery.evaluation import thresholds
from discovery.methods.nodes import estimate_nodes
from discovery.methods.patching import estimate_sweep
from discovery.sites import Direction, MetricName, SiteName, Universe
from discovery.tasks.task import Task

ROUNDS = 1.5
A_SET = 0.55  # of a forward pass, for one set and pair: rows start at the first ablated layer (mean over the built-in tasks' runs)
DIRECTIONS: tuple[Direction, ...] = ("denoising", "noising")
SIDES: tuple[Side, ...] = ("clean", "corrupted")


@dataclass(frozen=True)
class Estimate:
    """Forward-pass equivalents of a run.

    Attributes:
        stages: stage -> forward-pass equivalents. spent: what the estimate itself cost (the cached passes).
    """

    forward_equivalents: float
    stages: Mapping[str, float]
    spent: float
    note: str

    def to_json(self) -> dict[str, object]:
        """For --dry-run --json."""
        return {"forward_equivalents": self.forward_equivalents, "stages": dict(self.stages), "spent": self.spent, "note": self.note}


def estimate(
    model: Backend,
    task: Task,
    *,
    metric: MetricName | None = None,
    universe: Universe = "all",
    budget: float | None = None,
    memory: int | None = None,
    exhaustive: bool = False,
) -> Estimate:
    """Plan a run without running it (both sides of each discovery prompt are run once, to see which cells differ)."""
    engine = Engine(model, task.discovery, metric=metric, memory=memory, meter=Meter())
    nodes, pairs, held = len(model.info.nodes(universe)), len(task.discovery), len(task.heldout)
    for side in SIDES:
        engine.baseline(side)
    unseen = Engine(model, task.heldout, metric=metric, memory=memory)
    stages = {"check": sum(len(SIDES) * block.pass_work() for part in (engine, unseen) for _, block in part.blocks())}
    sites: list[SiteName] = ["attn_out"] if model.info.attn_only else ["attn_out", "mlp_out"]
    stages["localise"] = _sweeps(engine, ["resid_pre"], DIRECTIONS)
    stages["components"] = _sweeps(engine, sites, DIRECTIONS)
    stages["heads"] = sum(estimate_nodes(engine, direction, universe) for direction in DIRECTIONS) + A_SET * nodes * pairs
    size = max(2, nodes // 3)
    around = 2 * nodes + 2  # sets that (c) asks of one circuit
    contexts = size * (size - 1) // 2 + size * max(size - 2, 0)
    stages["candidate"] = A_SET * 4 * nodes * pairs
    stages["mend"] = A_SET * 2 * pairs * (ROUNDS * around + contexts)
    stages["stability"] = SHARE * sum(stages.values())
    others = min(thresholds.CONTROLS, math.comb(nodes, size) - 1)  # of a small model there are fewer
    stages["validate"] = A_SET * (2 * held * (around + 2 * size) + 4 * others * min(thresholds.CONTROL_PAIRS, held))
    stages["edges"] = pairs * 4.0 * (size + 2) * (size + 1) / 2 / max(model.info.n_layers, 1)
    stages["interpret"] = _sweeps(engine, ["head_out_by_position", *sites[1:]], ["noising"])
    total = sum(stages.values())
    note = "check and sweeps as planned; the rest assumes a circuit of a third of the nodes: off by up to a factor of two"
    if budget is not None and total > budget:
        note = f"more than the budget of {budget:.0f}; {note}"
    return Estimate(total, stages, engine.meter.spent, note)


def _sweeps(engine: Engine, sites: Sequence[SiteName], directions: Sequence[Direction]) -> float:
    """Rows of some sweeps, and the cached passes that they bring about (made here, to see which cells differ)."""
    before = engine.meter.spent
    rows = sum(estimate_sweep(engine, site, direction) for site in sites for direction in directions)
    return rows + engine.meter.spent - before
