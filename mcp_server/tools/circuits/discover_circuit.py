"""The whole discovery of a circuit, in the background."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

from mcp.types import CallToolResult
from pydantic import Field

from discovery.sites import MetricName
from discovery.tasks import BUILTIN
from mcp_server.errors import ServerError
from mcp_server.session import Session
from mcp_server.session.devices import run_in_thread
from mcp_server.session.runs import BackgroundRun
from mcp_server.tools.arguments import (
    MAX_PAIRS,
    MIN_VERDICT_PAIRS,
    Budget,
    MetricChoice,
    PairList,
    Seed,
    TaskName,
    ToolContext,
    to_task_input,
)
from mcp_server.tools.circuit_views import (
    NodeView,
    ScoreView,
    load_circuit_if_any,
    node_views,
    run_content,
    score_views,
)
from mcp_server.tools.circuits.elicitation import (
    BUDGET_FACTOR,
    BehaviourAnswer,
    BudgetAnswer,
    PairCountAnswer,
    choose_pair_count,
    choose_task,
    estimate_run_cost,
    wants_higher_budget,
)
from mcp_server.tools.measurement import session_of
from mcp_server.tools.result import CostView, Listing, cost_view, to_call_result
from mcp_server.tools.run_state import (
    ProgressView,
    follow_hint,
    read_run,
    resume_hint,
    resume_run,
    wait_for_run,
)


class DiscoverCircuitResult(Listing):
    """What discover_circuit gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("nodes", "reasons")
    narrowing_hint: ClassVar[str] = (
        "get_circuit(run_id=..., top=500, detail='detailed') lists more; circuit.json holds "
        "everything."
    )

    run_id: str
    status: str = Field(
        description="running: poll run_status; completed; interrupted: call again with run_id; "
        "failed."
    )
    verdict: str | None
    reasons: list[str]
    nodes: list[NodeView]
    n_edges: int | None
    scores: list[ScoreView]
    progress: ProgressView | None
    notes: list[str] = Field(description="Defaults that were used, and what to know of them.")
    folder: str | None = Field(description="Where the run is kept, on this machine.")
    next: str
    cost: CostView | None


async def discover_circuit(
    context: ToolContext,
    behaviour_answer: BehaviourAnswer,
    pair_count_answer: PairCountAnswer,
    budget_answer: BudgetAnswer,
    model_id: Annotated[
        str | None,
        Field(description="Handle from load_model; needed unless run_id is given.", max_length=500),
    ] = None,
    task: Annotated[
        TaskName | PairList | None,
        Field(
            description="Built-in task, path of a .jsonl task file, or inline pairs; needed unless "
            "run_id is given."
        ),
    ] = None,
    run_id: Annotated[
        str | None,
        Field(
            description="Resume this interrupted run instead; the other arguments are the run's "
            "own.",
            max_length=200,
        ),
    ] = None,
    metric: MetricChoice = None,
    budget: Annotated[Budget | None, Field(description="Default: unlimited.")] = None,
    pairs: Annotated[
        int | None,
        Field(
            description="Prompt pairs; default: the task's own number (240 for built-in ones). A "
            "verdict needs 96.",
            ge=2,
            le=MAX_PAIRS,
        ),
    ] = None,
    seed: Seed = 0,
    wait_seconds: Annotated[
        float,
        Field(description="How long to wait for the end before returning run_id.", ge=0, le=3600),
    ] = 45,
) -> Annotated[CallToolResult, DiscoverCircuitResult]:
    """Finds the circuit behind a behaviour on its own and judges it: checks the behaviour, patches
    layers, components, heads and edges, freezes a circuit on discovery pairs, tests it on held-out
    pairs against controls, and writes a record with figures. The verdict is computed.

    Use it when the question is "which heads and MLPs do this, and is that proven?". Not for a quick
    look (patch_sweep), nor for nodes that you chose yourself (evaluate_circuit). It returns when
    the run is done, or after `wait_seconds` with status running: then poll run_status(run_id), and
    call get_circuit(run_id) at the end. The run continues even if this call is cancelled;
    cancel_run stops it, and discover_circuit(run_id=...) resumes an interrupted run. Cost:
    thousands of forward passes; ioi in the bundled model 1 to 5 minutes, gpt2 on a GPU about 15.

    Example: discover_circuit(model_id="bundled", task="ioi").
    """
    session = session_of(context)
    notes: list[str] = []
    if run_id is not None:
        background = await run_in_thread(partial(resume_run, session, run_id, "discovery"))
        arguments = {
            "model_id": model_id,
            "task": task,
            "metric": metric,
            "budget": budget,
            "pairs": pairs,
            "seed": seed or None,
        }
        notes += _notes_on_ignored(arguments)
    else:
        source = choose_task(behaviour_answer, task)
        if model_id is None or source is None:
            raise _missing_argument("model_id" if model_id is None else "task")
        n_pairs = choose_pair_count(pair_count_answer, pairs)
        if n_pairs != pairs:
            notes.append(f"The task's own number of pairs instead of {pairs}, as the user agreed.")
        is_raised = wants_higher_budget(budget_answer)
        if is_raised:
            estimate = await estimate_run_cost(context, model_id, source, n_pairs, seed)
            budget = BUDGET_FACTOR * estimate
        notes += _notes_on_budget(budget, is_raised=is_raised)
        start = partial(_start_run, session, model_id, source, n_pairs)
        background, run_notes = await run_in_thread(
            partial(start, metric=metric, seed=seed, budget=budget)
        )
        notes += run_notes
    if background is not None:
        await wait_for_run(context, background, wait_seconds)
        run_id = background.run_id or run_id
    return await run_in_thread(partial(_make_result, session, str(run_id), notes))


def _missing_argument(name: str) -> ServerError:
    return ServerError(
        f"discover_circuit needs {name}, or the run_id of a run to resume.",
        "Call discover_circuit(model_id=..., task=...); task is one of "
        f"{', '.join(BUILTIN)}, a task file, or inline pairs.",
    )


def _notes_on_ignored(arguments: dict[str, Any]) -> list[str]:
    """Return a note on the arguments that a call gave although it resumes a run."""
    ignored = [name for name, value in arguments.items() if value is not None]
    if not ignored:
        return []
    return [f"Ignored, because a resumed run keeps its own arguments: {', '.join(ignored)}."]


def _notes_on_budget(budget: float | None, *, is_raised: bool) -> list[str]:
    if budget is None:
        return []
    if is_raised:
        return [
            f"The budget was raised to {budget:,.0f} forward-pass equivalents, as the user agreed."
        ]
    return [
        f"The budget is {budget:,.0f} forward-pass equivalents. If it ends before the evaluation, "
        "the verdict is inconclusive."
    ]


def _start_run(
    session: Session,
    model_id: str,
    source: TaskName | PairList,
    pairs: int | None,
    *,
    metric: MetricName | None,
    seed: int,
    budget: float | None,
) -> tuple[BackgroundRun, list[str]]:
    """Start a new run, and return it when its folder exists, with notes on its pairs."""
    loaded = session.models.get(model_id)
    task = session.get_task(loaded, to_task_input(source), pairs, seed)
    notes = []
    if len(task) < MIN_VERDICT_PAIRS:
        notes.append(
            f"{len(task)} pairs: fewer than the {MIN_VERDICT_PAIRS} that a verdict needs, so it "
            "can be inconclusive at best."
        )
    resolved = session.resolve_task_source(to_task_input(source))
    load = loaded.request.load_arguments.model_copy(
        update={"pairs": pairs, "task": resolved if isinstance(resolved, str) else None}
    )
    background = session.runs.start_discovery(
        loaded, task, load, metric=metric, seed=seed, budget=budget
    )
    return background, notes


def _make_result(session: Session, run_id: str, notes: Sequence[str]) -> CallToolResult:
    """Return the present state of the run, with its circuit if it is complete."""
    state = read_run(session, run_id)
    circuit = load_circuit_if_any(state.run) if state.status == "completed" else None
    nodes = node_views(circuit) if circuit else []
    problems = [state.new_problem] if state.new_problem else []
    following = {
        "running": follow_hint(run_id),
        "completed": f'get_circuit(run_id="{run_id}") gives edges and evidence.',
    }
    result = DiscoverCircuitResult(
        run_id=run_id,
        status=state.status,
        verdict=circuit.verdict if circuit else None,
        reasons=list(circuit.reasons) if circuit else [],
        nodes=nodes,
        n_edges=len(circuit.edges) if circuit else None,
        scores=score_views(circuit) if circuit else [],
        progress=state.progress,
        notes=[*notes, *problems],
        folder=state.folder,
        next=following.get(state.status, resume_hint(run_id, "discovery")),
        total=len(nodes),
        cost=cost_view(circuit.cost) if circuit else None,
    )
    return to_call_result(result, run_content(session, state.run, image=True) if circuit else [])
