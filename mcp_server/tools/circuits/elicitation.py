"""What discover_circuit asks its user before it begins, where the client can put a form to them."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import AcceptedElicitation, Elicit, ElicitationResult, Resolve
from pydantic import BaseModel, Field

from discovery.tasks import BUILTIN
from mcp_server.session import Work as Job
from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import ENOUGH, Call, Pairs, TaskName, pairs_given

ROOM = 2  # a run can take so many times what it is estimated at


class Behaviour(BaseModel):
    """Which behaviour to explain."""

    task: Literal["", "ioi", "induction", "greater_than", "agreement"] = Field(
        default="", description="A built-in behaviour; leave it empty to give pairs of your own instead."
    )


class Allowance(BaseModel):
    """Whether a run may cost what it is estimated at."""

    raise_budget: bool = Field(default=True, description="Raise the budget to the estimate; otherwise the run may end inconclusive.")


class Enough(BaseModel):
    """Whether to take as many pairs as a verdict needs."""

    use_enough: bool = Field(
        default=True, description="Take the task's own number of pairs; with fewer the verdict is inconclusive at best."
    )


def which_behaviour(call: Call, model_id: str | None, task: TaskName | Pairs | None, run_id: str | None) -> Behaviour | Elicit[Behaviour]:
    """Ask the user which behaviour is meant, where the call does not say and the client can ask."""
    if task is not None or not _may_ask(call, model_id, run_id):
        return Behaviour()
    known = "; ".join(f"{name}: {built.summary}" for name, built in BUILTIN.items())
    return Elicit(f"Which behaviour should the circuit explain? {known}", Behaviour)


Asked = Annotated[ElicitationResult[Behaviour], Resolve(which_behaviour)]


def enough_pairs(
    call: Call, asked: Asked, model_id: str | None, task: TaskName | Pairs | None, run_id: str | None, pairs: int | None
) -> Enough | Elicit[Enough]:
    """Ask whether more pairs may be drawn, where a built-in task is asked for with too few for a verdict and the client can ask."""
    chosen = chosen_task(asked, task)
    few = isinstance(chosen, str) and chosen in BUILTIN and pairs is not None and pairs < ENOUGH
    if not few or not _may_ask(call, model_id, run_id):
        return Enough(use_enough=False)
    return Elicit(f"{pairs} pairs are too few for a verdict, which needs {ENOUGH}. Take {BUILTIN[str(chosen)].default_pairs}?", Enough)


Drawn = Annotated[ElicitationResult[Enough], Resolve(enough_pairs)]


async def what_it_costs(
    call: Call,
    asked: Asked,
    drawn: Drawn,
    model_id: str | None,
    task: TaskName | Pairs | None,
    run_id: str | None,
    budget: float | None,
    pairs: int | None,
    seed: int,
) -> Allowance | Elicit[Allowance]:
    """Ask whether the budget may be raised, where the estimate for the task and pairs settled on is above it and the client can ask."""
    chosen = chosen_task(asked, task)
    if chosen is None or budget is None or not _may_ask(call, model_id, run_id):
        return Allowance(raise_budget=False)
    expected = await expected_cost(call, str(model_id), chosen, agreed_pairs(drawn, pairs), seed)
    if expected <= budget:
        return Allowance(raise_budget=False)
    return Elicit(
        f"This discovery is estimated at {expected:,.0f} forward-pass equivalents, and can take twice that; the budget is {budget:,.0f}. "
        f"Raise the budget to {ROOM * expected:,.0f}?",
        Allowance,
    )


async def expected_cost(call: Call, model_id: str, task: TaskName | Pairs, pairs: int | None, seed: int) -> float:
    """What the run is estimated to cost."""
    session = call.request_context.lifespan_context
    loaded = session.models.get(model_id)

    def job(work: Job) -> float:
        read = session.task(loaded, pairs_given(task), pairs, seed)
        return math.ceil(float(lazy_discovery.estimate(loaded.backend, read, memory=session.settings.memory).forward_equivalents))

    return await session.devices.run(call, loaded.device, "estimate", job)


def _may_ask(call: Call, model_id: str | None, run_id: str | None) -> bool:
    """Whether a question makes sense: the client can put a form to its user, and the call can lead to a new run."""
    capabilities: Any = call.client_capabilities
    ability = None if capabilities is None else capabilities.elicitation
    form = ability is not None and (ability.form is not None or ability.url is None)
    return form and run_id is None and model_id is not None and call.request_context.lifespan_context.models.has(model_id)


def chosen_task(asked: ElicitationResult[Behaviour], task: TaskName | Pairs | None) -> TaskName | Pairs | None:
    """The task of the call, else the user's."""
    return task if task is not None else (asked.data.task or None) if isinstance(asked, AcceptedElicitation) else None


def agreed_pairs(drawn: ElicitationResult[Enough], pairs: int | None) -> int | None:
    """How many pairs, after the user's word; None is the task's own number."""
    return None if isinstance(drawn, AcceptedElicitation) and drawn.data.use_enough else pairs


Allowed = Annotated[ElicitationResult[Allowance], Resolve(what_it_costs)]
