"""What discover_circuit asks the user before it begins, if the client can put a form to them.

The questions are resolved before the tool itself runs: which behaviour is meant, whether to use as
many pairs as a verdict needs, and whether the budget may be raised to the estimate.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import AcceptedElicitation, Elicit, ElicitationResult, Resolve
from pydantic import BaseModel, Field

from discovery.tasks import BUILTIN
from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import (
    MIN_VERDICT_PAIRS,
    PairList,
    TaskName,
    ToolContext,
    to_task_input,
)
from mcp_server.tools.measurement import Measurement, run_measurement, session_of

BUDGET_FACTOR = 2  # a run can take this many times its estimate


class BehaviourForm(BaseModel):
    """Which behaviour to explain."""

    task: Literal[
        "",
        "ioi",
        "induction",
        "greater_than",
        "agreement",
        "docstring",
        "gender",
        "capitals",
    ] = Field(
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
    """Whether to use as many pairs as a verdict needs."""

    use_enough: bool = Field(
        default=True,
        description="Use the task's own number of pairs; with fewer the verdict is inconclusive "
        "at best.",
    )


def ask_behaviour(
    context: ToolContext, model_id: str | None, task: TaskName | PairList | None, run_id: str | None
) -> BehaviourForm | Elicit[BehaviourForm]:
    """Ask which behaviour is meant, if the call does not say and the client can ask."""
    if task is not None or not _can_ask(context, model_id, run_id):
        return BehaviourForm()
    tasks = "; ".join(f"{name}: {builtin.summary}" for name, builtin in BUILTIN.items())
    return Elicit(f"Which behaviour should the circuit explain? {tasks}", BehaviourForm)


BehaviourAnswer = Annotated[ElicitationResult[BehaviourForm], Resolve(ask_behaviour)]


def ask_pair_count(
    context: ToolContext,
    behaviour_answer: BehaviourAnswer,
    model_id: str | None,
    task: TaskName | PairList | None,
    run_id: str | None,
    pairs: int | None,
) -> PairCountForm | Elicit[PairCountForm]:
    """Ask whether to use more pairs, if the call asks for too few and the client can ask.

    Only a built-in task can draw more pairs.
    """
    source = choose_task(behaviour_answer, task)
    can_draw_more = isinstance(source, str) and source in BUILTIN
    has_too_few = pairs is not None and pairs < MIN_VERDICT_PAIRS
    if not can_draw_more or not has_too_few or not _can_ask(context, model_id, run_id):
        return PairCountForm(use_enough=False)
    return Elicit(
        f"{pairs} pairs are too few for a verdict, which needs {MIN_VERDICT_PAIRS}. "
        f"Take {BUILTIN[str(source)].default_pairs}?",
        PairCountForm,
    )


PairCountAnswer = Annotated[ElicitationResult[PairCountForm], Resolve(ask_pair_count)]


async def ask_budget(
    context: ToolContext,
    behaviour_answer: BehaviourAnswer,
    pair_count_answer: PairCountAnswer,
    model_id: str | None,
    task: TaskName | PairList | None,
    run_id: str | None,
    budget: float | None,
    pairs: int | None,
    seed: int,
) -> BudgetForm | Elicit[BudgetForm]:
    """Ask whether to raise the budget, if the estimate is above it and the client can ask.

    The estimate is for the task and the pairs that the earlier answers settled.
    """
    source = choose_task(behaviour_answer, task)
    if source is None or budget is None or not _can_ask(context, model_id, run_id):
        return BudgetForm(raise_budget=False)
    n_pairs = choose_pair_count(pair_count_answer, pairs)
    estimate = await estimate_run_cost(context, str(model_id), source, n_pairs, seed)
    if estimate <= budget:
        return BudgetForm(raise_budget=False)
    return Elicit(
        f"This discovery is estimated at {estimate:,.0f} forward-pass equivalents, and can take "
        f"twice that; the budget is {budget:,.0f}. "
        f"Raise the budget to {BUDGET_FACTOR * estimate:,.0f}?",
        BudgetForm,
    )


BudgetAnswer = Annotated[ElicitationResult[BudgetForm], Resolve(ask_budget)]


async def estimate_run_cost(
    context: ToolContext, model_id: str, task: TaskName | PairList, pairs: int | None, seed: int
) -> float:
    """Return the forward-pass equivalents that a discovery is estimated to take."""

    def measure(measurement: Measurement) -> float:
        loaded_task = measurement.session.get_task(
            measurement.model, to_task_input(task), pairs, seed
        )
        estimate = lazy_discovery.estimate_cost(
            measurement.backend, loaded_task, memory=measurement.memory
        )
        return math.ceil(float(estimate.forward_equivalents))

    return await run_measurement(context, model_id, "estimate", measure)


def choose_task(
    answer: ElicitationResult[BehaviourForm], task: TaskName | PairList | None
) -> TaskName | PairList | None:
    """Return the task of the call, or else the one that the user chose, or None."""
    if task is not None or not isinstance(answer, AcceptedElicitation):
        return task
    return answer.data.task or None


def choose_pair_count(answer: ElicitationResult[PairCountForm], pairs: int | None) -> int | None:
    """Return how many pairs to use after the user's answer; None is the task's own number."""
    wants_enough = isinstance(answer, AcceptedElicitation) and answer.data.use_enough
    return None if wants_enough else pairs


def wants_higher_budget(answer: ElicitationResult[BudgetForm]) -> bool:
    """Return whether the user agreed to raise the budget."""
    return isinstance(answer, AcceptedElicitation) and answer.data.raise_budget


def _can_ask(context: ToolContext, model_id: str | None, run_id: str | None) -> bool:
    """Return whether a question makes sense.

    The client must be able to put a form to its user, and the call must be able to start a new run.
    """
    capabilities: Any = context.client_capabilities
    elicitation = None if capabilities is None else capabilities.elicitation
    has_forms = elicitation is not None and (
        elicitation.form is not None or elicitation.url is None
    )
    return (
        has_forms
        and run_id is None
        and model_id is not None
        and session_of(context).models.is_loaded(model_id)
    )
