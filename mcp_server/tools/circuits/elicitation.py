"""What discover_circuit asks its user before it begins, where the client can put a form to them."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import AcceptedElicitation, Elicit, ElicitationResult, Resolve
from pydantic import BaseModel, Field

from discovery.tasks import BUILTIN
from mcp_server.session import DeviceJob as Job
from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import (
    MIN_VERDICT_PAIRS,
    PairList,
    TaskName,
    ToolContext,
    to_task_input,
)

BUDGET_FACTOR = 2  # a run can take so many times what it is estimated at


class BehaviourForm(BaseModel):
    """Which behaviour to explain."""

    task: Literal["", "ioi", "induction", "greater_than", "agreement"] = Field(
        default="",
        description="A built-in behaviour; leave it empty to give pairs of your own instead.",
    )


class BudgetForm(BaseModel):
    """Whether a run may cost what it is estimated at."""

    raise_budget: bool = Field(
        default=True,
        description="Raise the budget to the estimate; otherwise the run may end inconclusive.",
    )


class PairCountForm(BaseModel):
    """Whether to take as many pairs as a verdict needs."""

    use_enough: bool = Field(
        default=True,
        description="Take the task's own number of pairs; with fewer the verdict is inconclusive at best.",
    )


def ask_behaviour(
    call: ToolContext, model_id: str | None, task: TaskName | PairList | None, run_id: str | None
) -> BehaviourForm | Elicit[BehaviourForm]:
    """Ask the user which behaviour is meant, where the call does not say and the client can ask."""
    if task is not None or not _can_ask(call, model_id, run_id):
        return BehaviourForm()
    known = "; ".join(f"{name}: {built.summary}" for name, built in BUILTIN.items())
    return Elicit(f"Which behaviour should the circuit explain? {known}", BehaviourForm)


BehaviourAnswer = Annotated[ElicitationResult[BehaviourForm], Resolve(ask_behaviour)]


def ask_pair_count(
    call: ToolContext,
    asked: BehaviourAnswer,
    model_id: str | None,
    task: TaskName | PairList | None,
    run_id: str | None,
    pairs: int | None,
) -> PairCountForm | Elicit[PairCountForm]:
    """Ask whether more pairs may be drawn, where a built-in task is asked for with too few for a verdict and the client can ask."""
    chosen = choose_task(asked, task)
    few = (
        isinstance(chosen, str)
        and chosen in BUILTIN
        and pairs is not None
        and pairs < MIN_VERDICT_PAIRS
    )
    if not few or not _can_ask(call, model_id, run_id):
        return PairCountForm(use_enough=False)
    return Elicit(
        f"{pairs} pairs are too few for a verdict, which needs {MIN_VERDICT_PAIRS}. Take {BUILTIN[str(chosen)].default_pairs}?",
        PairCountForm,
    )


PairCountAnswer = Annotated[ElicitationResult[PairCountForm], Resolve(ask_pair_count)]


async def ask_budget(
    call: ToolContext,
    asked: BehaviourAnswer,
    drawn: PairCountAnswer,
    model_id: str | None,
    task: TaskName | PairList | None,
    run_id: str | None,
    budget: float | None,
    pairs: int | None,
    seed: int,
) -> BudgetForm | Elicit[BudgetForm]:
    """Ask whether the budget may be raised, where the estimate for the task and pairs settled on is above it and the client can ask."""
    chosen = choose_task(asked, task)
    if chosen is None or budget is None or not _can_ask(call, model_id, run_id):
        return BudgetForm(raise_budget=False)
    expected = await estimate_run_cost(
        call, str(model_id), chosen, choose_pair_count(drawn, pairs), seed
    )
    if expected <= budget:
        return BudgetForm(raise_budget=False)
    return Elicit(
        f"This discovery is estimated at {expected:,.0f} forward-pass equivalents, and can take twice that; the budget is {budget:,.0f}. "
        f"Raise the budget to {BUDGET_FACTOR * expected:,.0f}?",
        BudgetForm,
    )


async def estimate_run_cost(
    call: ToolContext, model_id: str, task: TaskName | PairList, pairs: int | None, seed: int
) -> float:
    """What the run is estimated to cost."""
    session = call.request_context.lifespan_context
    loaded = session.models.get(model_id)

    def job(work: Job) -> float:
        read = session.get_task(loaded, to_task_input(task), pairs, seed)
        return math.ceil(
            float(
                lazy_discovery.estimate_cost(
                    loaded.backend, read, memory=session.settings.memory
                ).forward_equivalents
            )
        )

    return await session.devices.run(call, loaded.device, "estimate", job)


def _can_ask(call: ToolContext, model_id: str | None, run_id: str | None) -> bool:
    """Whether a question makes sense: the client can put a form to its user, and the call can lead to a new run."""
    capabilities: Any = call.client_capabilities
    ability = None if capabilities is None else capabilities.elicitation
    form = ability is not None and (ability.form is not None or ability.url is None)
    return (
        form
        and run_id is None
        and model_id is not None
        and call.request_context.lifespan_context.models.is_loaded(model_id)
    )


def choose_task(
    asked: ElicitationResult[BehaviourForm], task: TaskName | PairList | None
) -> TaskName | PairList | None:
    """The task of the call, else the user's."""
    return (
        task
        if task is not None
        else (asked.data.task or None)
        if isinstance(asked, AcceptedElicitation)
        else None
    )


def choose_pair_count(drawn: ElicitationResult[PairCountForm], pairs: int | None) -> int | None:
    """How many pairs, after the user's word; None is the task's own number."""
    return None if isinstance(drawn, AcceptedElicitation) and drawn.data.use_enough else pairs


BudgetAnswer = Annotated[ElicitationResult[BudgetForm], Resolve(ask_budget)]
