"""The plan of a run at work: what its stages will cost, and how its budget is divided over them.

A run is planned after the check, when its prompts are cached and nothing else was spent, and again
when its first candidate and its circuit are known. Each plan is an event of the journal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from discovery.agent.budget import BudgetPlan, plan_budget
from discovery.agent.context import RunContext
from discovery.agent.cost_estimate import StageEstimator, measure_rate
from discovery.agent.stages.nodes import RANKING_PAIRS
from discovery.agent.state import State
from discovery.errors import BudgetError
from discovery.report.formatting import format_duration

PLANNED_AFTER = ("check", "candidate", "mend")
MIN_RATE_SECONDS = 20.0  # of work from which the rate of the whole run is used


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """How far a run is, and what is left of it.

    Attributes:
        earlier: the forward-pass equivalents that earlier processes spent on the run.
        done: the forward-pass equivalents that the run has spent, with the earlier ones.
        total: what the whole run is estimated to take, or its budget if that is less.
        rate: the forward-pass equivalents that it does in a second.
    """

    earlier: float
    done: float
    total: float
    rate: float

    @property
    def seconds_left(self) -> float:
        """The seconds until the end."""
        return (self.total - self.done) / self.rate

    def describe(self) -> str:
        """Return the outlook in words."""
        return (
            f"{self.done:,.0f} of about {self.total:,.0f} forward-pass equivalents done, about "
            f"{format_duration(self.seconds_left)} left"
        )


OnOutlook = Callable[[Outlook], None]
"""Called whenever the outlook of a run has changed: after each stage."""


def plan_stages(state: State, context: RunContext) -> State:
    """Estimate the stages that are not done, divide the budget over them, and write it down.

    If the budget does not even reach an estimate, the state is returned as it is.
    """
    try:
        estimates = _estimate_stages(state, context)
    except BudgetError:
        return state
    state = state.with_changes(estimates=estimates, rate=current_rate(context) or state.rate)
    use_plan(state, context)
    outlook = describe_outlook(state, context)
    waiting = [f"{name} {cost:,.0f}" for name, cost in _waiting(state).items()]
    left = f"{outlook.total - outlook.done:,.0f} forward-pass equivalents"
    duration = format_duration(outlook.seconds_left)
    shortage = context.plan.shortage if context.plan else ""
    context.write_plan(
        state,
        {
            "estimates": dict(estimates),
            "shares": dict(context.plan.shares) if context.plan else None,
            "forward_equivalents_left": outlook.total - outlook.done,
            "seconds_left": outlook.seconds_left,
            "rate": outlook.rate,
        },
        f"about {left} are left, about {duration}" + (f"; {shortage}" if shortage else ""),
        f"estimated: {', '.join(waiting)}",
    )
    return state


def _estimate_stages(state: State, context: RunContext) -> Mapping[str, float]:
    """Estimate the cost of the stages, and time a few sets if none have been timed yet.

    Raises:
        BudgetError: if the budget does not even reach that.
    """
    ranking = context.description_engine
    if context.settings.exhaustive:
        ranking = context.evaluator("discovery").first(RANKING_PAIRS).engine
    estimator = StageEstimator(
        discovery=context.evaluator("discovery").engine,
        heldout=context.evaluator("heldout").engine,
        ranking=ranking,
        description=context.description_engine,
        universe=context.universe,
        budget=context.settings.budget,
        exhaustive=context.settings.exhaustive,
    )
    n_nodes = len(state.circuit) or None
    is_found = "mend" in state.done
    estimates = estimator.estimate(
        start=None if is_found else n_nodes, size=n_nodes if is_found else None
    )
    if context.timed_rate is None:
        context.timed_rate = measure_rate(ranking, context.universe)
    return estimates


def use_plan(state: State, context: RunContext) -> None:
    """Divide the budget of the run over the stages that are not done; nothing without a budget."""
    budget = context.settings.budget
    if budget is not None and state.estimates:
        context.plan = plan_budget(
            state.estimates, budget, spent=context.meter.spent, done=state.done
        )


def is_out_of_reach(plan: BudgetPlan | None, stage: str) -> bool:
    """Whether a stage that is measured whole or not at all has no share of the budget."""
    return plan is not None and stage in plan.estimates and not plan.shares.get(stage)


def describe_outlook(state: State, context: RunContext) -> Outlook:
    """Return how far the run is, from the estimates of the stages that are not done."""
    done = context.meter.spent
    total = done + (0.0 if state.should_stop else sum(_waiting(state).values()))
    if context.settings.budget is not None:
        total = max(min(total, context.settings.budget), done)
    rate = current_rate(context) or state.rate or 1.0
    return Outlook(earlier=context.spent_before, done=done, total=total, rate=rate)


def current_rate(context: RunContext) -> float | None:
    """Return the forward-pass equivalents a second; None before anything was timed.

    It is the rate of a timed batch until the run has worked long enough to have one of its own.
    """
    seconds = time.monotonic() - context.started_at
    work = context.meter.spent - context.spent_before
    if seconds >= MIN_RATE_SECONDS and work > 0:
        return work / seconds
    return context.timed_rate


def _waiting(state: State) -> Mapping[str, float]:
    return {name: cost for name, cost in state.estimates.items() if name not in state.done}
