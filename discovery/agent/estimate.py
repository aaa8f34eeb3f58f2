"""What a run will cost, before it is begun: sweeps from the plan of their rows, sets from their number.

The sweeps' part is what the engine will count, to the row. How many sets the search and the controls need depends on
what is found; the estimate assumes a circuit of a third of the universe and a few rounds of mending.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from discovery.backends.base import Backend
from discovery.engine import Engine, Meter
from discovery.evaluation import thresholds
from discovery.methods.patching import estimate_sweep
from discovery.sites import Direction, MetricName, SiteName, Universe
from discovery.tasks.task import Task

ROUNDS = 3


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
    directions: tuple[Direction, ...] = ("denoising", "noising")
    sites: list[SiteName] = ["attn_out"] if model.info.attn_only else ["attn_out", "mlp_out"]
    grids: dict[str, list[SiteName]] = {
        "localise": ["resid_pre"],
        "components": sites,
        "heads": ["head_out"],
        "interpret": ["head_out_by_position"],
    }
    stages: dict[str, float] = {name: sum(estimate_sweep(engine, s, d) for s in grids[name] for d in directions) for name in grids}
    stages["interpret"] /= len(directions)
    nodes, pairs, held = len(model.info.nodes(universe)), len(task.discovery), len(task.heldout)
    size = max(2, nodes // 3)
    around = 2 * nodes + 2  # sets that (c) asks of one circuit
    contexts = size * (size - 1) // 2 + 2 * size * max(size - 2, 0) // 2
    stages["check"] = engine.meter.spent * (1 + held / max(pairs, 1))
    stages["candidate"] = 4.0 * nodes * pairs
    stages["mend"] = 2.0 * pairs * (ROUNDS * around + 2 * contexts)
    others = min(thresholds.CONTROLS, math.comb(nodes, size) - 1)  # of a small model there are fewer
    stages["validate"] = 2.0 * held * (around + 2 * size) + 2.0 * 2 * others * min(thresholds.CONTROL_PAIRS, held)
    stages["edges"] = pairs * 4.0 * (size + 2) * (size + 1) / 2 / max(model.info.n_layers, 1)
    total = sum(stages.values())
    note = "sweeps as planned; candidate to edges assume a circuit of a third of the universe, and can be off by a factor of two"
    if budget is not None and total > budget:
        note = f"more than the budget of {budget:.0f}; {note}"
    return Estimate(total, stages, engine.meter.spent, note)
