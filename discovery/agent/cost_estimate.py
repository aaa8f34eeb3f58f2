"""What a run will cost, before it begins and again once its circuit is known.

The cost of the behaviour check, the single nodes and the sweeps follows from the plan of their
rows. What the search, the evaluation and the edges cost depends on the size of the circuit. Before
the search it is assumed (`assume_size`); afterwards the same formulas take the circuit itself.

The seconds are the forward-pass equivalents divided by the rate at which this machine works on this
model. Before a run the rate is measured on a pass over the prompts.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from discovery.agent.budget import BudgetPlan, plan_budget
from discovery.agent.context import SEARCH_PAIRS
from discovery.agent.search.fit import MAX_CURVE_SIZES, START_SURPLUS
from discovery.agent.search.measured import SCREEN_PAIRS
from discovery.agent.stages.nodes import RANKING_PAIRS
from discovery.agent.stages.position_sweeps import (
    DIRECTIONS,
    component_sites,
    max_description_cost,
    max_sweep_cost,
)
from discovery.backends.base import Backend
from discovery.engine import SIDES, Engine, Meter
from discovery.evaluation import SplitEvaluator, thresholds
from discovery.evaluation.alternatives import ALTERNATIVE_SCREENING_PAIRS
from discovery.evaluation.completeness import BLOCK_SIZE, N_PARTITIONS
from discovery.evaluation.contexts import (
    CONTEXT_PAIRS,
    CONTEXT_SCREENING_PAIRS,
    MAX_SCREENED,
    N_PARTNERS_BY_DROP,
)
from discovery.graph import EVIDENCE_ABLATIONS
from discovery.methods.ablation import NodeSet, SetMetric
from discovery.methods.patching import estimate_node_effects, plan_sweep
from discovery.methods.roles import estimate_roles
from discovery.sites import Direction, MetricName, SiteName, Universe
from discovery.tasks.task import Task

# What the search does before it ends, as seen in runs on models of 8 to 20 nodes.
SEARCH_ROUNDS = 5  # of leaving nodes out and of adding them
EXAMINED_OUTSIDE_SHARE = 1 / 4  # of the universe, in each round, beside the circuit's own nodes
SHORT_SHARE = 1 / 4  # of the circuit's nodes, which are tried in contexts (d)
PAIRS_PER_SCREEN = 1.5  # times SCREEN_PAIRS: most nodes are decided by these, some need all pairs
NEAR_BOUND_SHARE = 0.5  # of the checked nodes, which are measured on all held-out pairs
NEW_STABILITY_SETS = 0.1  # of the sets of a repeated search that no search has measured
TIMED_SETS = 6  # sets that are measured in order to time them
SAMPLED_SETS = 12  # sets that are drawn in order to see what a set costs on average
# The size of the circuit that is assumed before it is known. Small models use a third of their
# nodes for a task; models with hundreds of nodes about an eighth.
SMALL_MODEL_SIZE = 20
SMALL_MODEL_SHARE = 1 / 3
LARGE_MODEL_SHARE = 1 / 8


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """The estimated cost of a run.

    Attributes:
        forward_equivalents: the cost of the whole run in forward-pass equivalents, or its budget if
            that is smaller.
        stages: the cost of each stage, without a budget.
        seconds: how long the whole run takes on this machine.
        rate: the forward-pass equivalents that this machine does in a second.
        plan: how the budget is divided; None without a budget.
        spent: the forward-pass equivalents that making this estimate took.
        note: how exact the estimate is, and what it assumes.
    """

    forward_equivalents: float
    stages: Mapping[str, float]
    seconds: float
    rate: float
    plan: BudgetPlan | None
    spent: float
    note: str

    def to_dict(self) -> dict[str, object]:
        """Return the estimate as `discover --dry-run --json` prints it."""
        return {
            "forward_equivalents": self.forward_equivalents,
            "seconds": self.seconds,
            "rate": self.rate,
            "stages": dict(self.stages),
            "plan": None if self.plan is None else self.plan.model_dump(mode="json"),
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
    seed: int = 0,
) -> CostEstimate:
    """Estimate the cost of `discover` with these arguments, without running it.

    Both sides of the prompts on which nodes are ranked are run once, to see which cells of a sweep
    differ, and a few sets are measured, to see how long that takes.
    """
    meter = Meter()
    discovery, heldout = (
        SplitEvaluator.of(model, part, universe, seed, metric=metric, memory=memory, meter=meter)
        for part in (task.discovery, task.heldout)
    )
    ranking = discovery.first(RANKING_PAIRS).engine
    rate = measure_rate(ranking, universe)
    estimator = StageEstimator(
        discovery=discovery.engine,
        heldout=heldout.engine,
        ranking=ranking,
        description=discovery.engine if exhaustive else ranking,
        universe=universe,
        budget=budget,
        exhaustive=exhaustive,
    )
    stages = estimator.estimate()
    plan = None if budget is None else plan_budget(stages, budget)
    total = sum(stages.values())
    if budget is not None:
        total = min(total, budget)
    return CostEstimate(
        forward_equivalents=total,
        stages=stages,
        seconds=total / rate,
        rate=rate,
        plan=plan,
        spent=meter.spent,
        note=_explain_estimate(estimator, plan),
    )


def measure_rate(engine: Engine, universe: Universe) -> float:
    """Return the forward-pass equivalents a second of some sets, when their caches are filled.

    Raises:
        BudgetError: if the budget does not reach that far.
    """
    sets = SetMetric(engine, "resample", universe)
    sets.fill_cache()
    kept: list[NodeSet] = [
        frozenset(sets.universe[: len(sets.universe) * n // TIMED_SETS]) for n in range(TIMED_SETS)
    ]
    sets(kept[:1], "warming up")
    spent = engine.meter.spent
    began = time.monotonic()
    sets(kept[1:], "timing")
    return (engine.meter.spent - spent) / max(time.monotonic() - began, 1e-6)


def assume_size(n_nodes: int) -> int:
    """Return the size of the circuit that is assumed before the search."""
    small = min(round(n_nodes * SMALL_MODEL_SHARE), SMALL_MODEL_SIZE)
    return max(2, small, round(n_nodes * LARGE_MODEL_SHARE))


@dataclass(frozen=True, kw_only=True)
class StageEstimator:
    """Estimates what each stage of a run costs.

    Attributes:
        discovery: all discovery pairs.
        heldout: the held-out pairs.
        ranking: those on which all nodes are measured; only these are run.
        description: those for sweeps by position and edges.
        universe: what can be ablated.
        budget: the budget of the run; None means no limit.
        exhaustive: whether every cell and edge is measured.
    """

    discovery: Engine
    heldout: Engine
    ranking: Engine
    description: Engine
    universe: Universe
    budget: float | None
    exhaustive: bool

    @property
    def n_nodes(self) -> int:
        """The number of nodes that can be ablated."""
        return len(self.ranking.backend.info.nodes(self.universe))

    @property
    def n_search_pairs(self) -> int:
        """The number of pairs that the search uses."""
        return min(SEARCH_PAIRS, len(self.discovery))

    @property
    def repeated(self) -> float:
        """What each measurement costs more because the pairs do not fit in memory together."""
        blocks = [block for _, block in self.discovery.blocks()]
        if len(blocks) == 1:
            return 0.0
        return len(SIDES) * sum(block.estimate_pass() for block in blocks)

    def estimate(self, *, start: int | None = None, size: int | None = None) -> dict[str, float]:
        """Return the cost of each stage, in the order of the stages.

        Args:
            start: the number of nodes with which the search begins; None before it is known.
            size: the number of nodes in the circuit; None before it is known.
        """
        if size is None:
            known = None if start is None else round(start / START_SURPLUS)
            size = max(known or assume_size(self.n_nodes), 1)
        start = start or min(math.ceil(size * START_SURPLUS), self.n_nodes)
        components = component_sites(self.ranking.backend.info)
        heads = self._single_node_cost()  # first, since it counts the reference prompts as well
        row = self._mean_row_cost(size)
        curve_sets = 2 * len(EVIDENCE_ABLATIONS) * self._count_curve_sizes()
        stability_sets = 2 * len(EVIDENCE_ABLATIONS) * thresholds.STABILITY_RESAMPLES
        node_sites: list[SiteName] = ["head_out_by_position", *components[1:]]
        return {
            "check": _pass_cost([self.discovery, self.heldout]),
            "heads": heads,
            "candidate": row * curve_sets * self.n_search_pairs,
            "mend": row * self._count_search_rows(start, size),
            "validate": row * self._count_heldout_rows(size),
            "stability": row * stability_sets * self.n_search_pairs * NEW_STABILITY_SETS,
            "localise": self._sweep_cost(["resid_pre"], DIRECTIONS),
            "components": self._sweep_cost(components, DIRECTIONS),
            "edges": self._edge_cost(size),
            "interpret": self._sweep_cost(node_sites, ["noising"], size / self.n_nodes)
            + estimate_roles(len(self.description)),
        }

    def _count_curve_sizes(self) -> int:
        """Return how many sizes the curve has: some at once, and those of a bisection."""
        if self.n_nodes < MAX_CURVE_SIZES:
            return self.n_nodes + 1
        return MAX_CURVE_SIZES + math.ceil(math.log2(2 * self.n_nodes / MAX_CURVE_SIZES))

    def _single_node_cost(self) -> float:
        """Return what every node alone costs, by patching and by mean ablation."""
        engine = self.ranking
        spent_before = engine.meter.spent
        mean_sets = SetMetric(engine, "mean", self.universe)
        without = [mean_sets.everything - {node} for node in mean_sets.universe]
        both_ends: list[NodeSet] = [mean_sets.everything, frozenset()]
        by_mean = mean_sets.estimate(both_ends) + mean_sets.estimate(without)
        patched = sum(
            estimate_node_effects(engine, direction, self.universe) for direction in DIRECTIONS
        )
        return patched + by_mean + engine.meter.spent - spent_before

    def _count_search_rows(self, start: int, size: int) -> float:
        """Return how many sets the search measures, each times its pairs.

        In each round it looks at the nodes of the circuit and at some outside, most of them on few
        pairs; at the end it looks for the contexts in which each node is needed.
        """
        examined = (start + size) / 2 + EXAMINED_OUTSIDE_SHARE * self.n_nodes
        rounds = (
            SEARCH_ROUNDS * examined * PAIRS_PER_SCREEN * min(SCREEN_PAIRS, self.n_search_pairs)
        )
        few_pairs = min(CONTEXT_SCREENING_PAIRS, self.n_search_pairs)
        screened = 2 * min(size, N_PARTNERS_BY_DROP) * few_pairs
        compared = 2 * min(size, MAX_SCREENED) * min(CONTEXT_PAIRS, self.n_search_pairs)
        contexts = SHORT_SHARE * size * (screened + compared)
        return len(EVIDENCE_ABLATIONS) * (rounds + contexts)

    def _count_heldout_rows(self, size: int) -> float:
        """Return how many sets the evaluation measures, each times its pairs.

        Each node that is checked takes two sets inside the circuit and one outside for (c), on few
        pairs unless it is near a bound; (d) needs one of these sets and a context. Nodes that are
        not checked are added in blocks. Most alternatives of (e) are dismissed on a few pairs.
        """
        n_heldout = len(self.heldout)
        few_pairs = min(thresholds.FIRST_PAIRS, n_heldout)
        inside = min(size, thresholds.MAX_CHECKED_NODES)
        outside = min(self.n_nodes - size, thresholds.MAX_CHECKED_NODES)
        blocks = N_PARTITIONS * (self.n_nodes - size - outside) / BLOCK_SIZE
        checked = 3 * inside + outside + blocks
        pairs = few_pairs + NEAR_BOUND_SHARE * (n_heldout - few_pairs)
        n_alternatives = min(
            thresholds.FIRST_ALTERNATIVES, math.comb(self.n_nodes, size) - 1
        ) * len(("size", "layer"))
        # Some are measured on more pairs.
        alternative_pairs = min(2 * ALTERNATIVE_SCREENING_PAIRS, n_heldout)
        rows = checked * pairs + n_alternatives * alternative_pairs
        return len(EVIDENCE_ABLATIONS) * rows

    def _mean_row_cost(self, size: int) -> float:
        """Return the average cost of measuring one set on one pair.

        The rows of a set begin at its first ablated layer, so the cost is averaged over sampled
        sets, each of them kept in one half of the cases and ablated in the other.
        """
        generator = random.Random("estimate")
        costs = []
        for ablation in EVIDENCE_ABLATIONS:
            sets = SetMetric(self.ranking, ablation, self.universe)
            samples = [
                frozenset(generator.sample(sets.universe, min(size, len(sets.universe))))
                for _ in range(SAMPLED_SETS)
            ]
            complements = [sets.everything - sample for sample in samples]
            costs.append(sets.estimate([*samples, *complements]) / (2 * SAMPLED_SETS))
        return sum(costs) / len(costs) / len(self.ranking)

    def _sweep_cost(
        self, sites: Sequence[SiteName], directions: Sequence[Direction], share: float = 1.0
    ) -> float:
        """Return what some sweeps cost: their rows, and the cached passes that planning them makes.

        Args:
            sites: the sites.
            directions: the directions of each.
            share: the share of the cells that is asked for.
        """
        engine = self.description
        info = engine.backend.info
        spent_before = engine.meter.spent
        max_cost = max_sweep_cost(info, self.universe, self.budget, exhaustive=self.exhaustive)
        rows = 0.0
        for site in sites:
            for direction in directions:
                whole, _ = plan_sweep(engine, site, direction, None)
                screened, _ = plan_sweep(engine, site, direction, max_cost)
                rows += min(whole * share, screened)
        return rows + engine.meter.spent - spent_before

    def _edge_cost(self, size: int) -> float:
        """Return what the edges of a circuit cost, of which a target head has the most inputs."""
        info = self.ranking.backend.info
        n_edges = (size + 2) * (size + 1) / 2
        whole = len(self.description) * 4.0 * n_edges / 2
        if self.exhaustive:
            return whole
        return min(whole, max_description_cost(info, self.universe, self.budget))


def _pass_cost(engines: Sequence[Engine]) -> float:
    """Return what one pass over both sides of all prompts costs."""
    return sum(
        len(SIDES) * block.estimate_pass() for engine in engines for _, block in engine.blocks()
    )


def _explain_estimate(estimator: StageEstimator, plan: BudgetPlan | None) -> str:
    size = assume_size(estimator.n_nodes)
    note = (
        "check, sweeps and single nodes are as planned; the rest assumes a circuit of "
        f"{size} nodes and may be off by a factor of two"
    )
    if repeated := estimator.repeated:
        note += (
            "; the pairs do not fit in memory together, so that the search runs the unchanged "
            f"prompts again and again, each time {repeated:,.0f} more"
        )
    if plan is not None and plan.shortage:
        note = f"{plan.shortage}; {note}"
    return note
