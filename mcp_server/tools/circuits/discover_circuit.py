"""The whole discovery, in the background."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Annotated, ClassVar

import anyio
from mcp.server.mcpserver import AcceptedElicitation
from mcp.types import CallToolResult
from pydantic import Field

from discovery.errors import DiscoveryError
from discovery.tasks import BUILTIN
from mcp_server.errors import ServerError
from mcp_server.session import Session
from mcp_server.session.devices import run_in_thread
from mcp_server.session.runs import BackgroundRun
from mcp_server.tools.arguments import (
    MAX_PAIRS,
    MIN_VERDICT_PAIRS,
    Budget,
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
)
from mcp_server.tools.measure.check_task import MetricChoice
from mcp_server.tools.result import CostView, Listing, cost_view, to_call_result
from mcp_server.tools.runs.run_status import ProgressView, progress_view

_POLL_SECONDS = 0.1  # seconds between two looks at a run that is waited for


class DiscoverCircuitResult(Listing):
    """What discover_circuit gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("nodes", "reasons")
    narrowing_hint: ClassVar[str] = (
        "get_circuit(run_id=..., top=500, detail='detailed') lists more; circuit.json holds everything."
    )

    run_id: str
    status: str = Field(
        description="running: poll run_status; completed; interrupted: call again with run_id; failed."
    )
    verdict: str | None
    reasons: list[str]
    nodes: list[NodeView]
    n_edges: int | None
    scores: list[ScoreView]
    progress: ProgressView | None
    notes: list[str] = Field(description="Defaults that were taken, and what to know of them.")
    folder: str | None = Field(description="Where the run is kept, on this machine.")
    next: str
    cost: CostView | None


async def discover_circuit(
    call: ToolContext,
    asked: BehaviourAnswer,
    drawn: PairCountAnswer,
    budget_answer: BudgetAnswer,
    model_id: Annotated[
        str | None,
        Field(description="Handle from load_model; needed unless run_id is given.", max_length=500),
    ] = None,
    task: Annotated[
        TaskName | PairList | None,
        Field(
            description="Built-in task, path of a .jsonl task file, or inline pairs; needed unless run_id is given."
        ),
    ] = None,
    run_id: Annotated[
        str | None,
        Field(
            description="Resume this interrupted run instead; the other arguments are the run's own.",
            max_length=200,
        ),
    ] = None,
    metric: MetricChoice = None,
    budget: Annotated[Budget | None, Field(description="Unlimited where left out.")] = None,
    pairs: Annotated[
        int | None,
        Field(
            description="Prompt pairs; the task's own number (240 for built-in ones) if left out. A verdict needs 96.",
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
    """Finds the circuit behind a behaviour on its own and judges it: checks the behaviour, patches layers, components, heads and edges,
    freezes a circuit on discovery pairs, tests it on held-out pairs against controls, and writes a record with figures. The verdict is
    computed.

    Use it when the question is "which heads and MLPs do this, and is that proven?". Not for a quick look (patch_sweep), nor for nodes
    that you chose yourself (evaluate_circuit). Returns when the run is done or after `wait_seconds`, then with status running: poll
    run_status(run_id), then get_circuit(run_id). The run goes on meanwhile, also where this call is cancelled; cancel_run stops it. An
    interrupted run goes on with discover_circuit(run_id=...). Cost: thousands of forward passes; ioi in the bundled model 1 to 5
    minutes, gpt2 on a GPU about 15.

    Example: discover_circuit(model_id="bundled", task="ioi").
    """
    session = call.request_context.lifespan_context
    chosen = choose_task(asked, task)
    notes: list[str] = []
    if run_id is not None:
        made = await run_in_thread(partial(_resume, session, run_id))
        given = {
            "model_id": model_id,
            "task": task,
            "metric": metric,
            "budget": budget,
            "pairs": pairs,
            "seed": seed or None,
        }
        if ignored := [name for name, value in given.items() if value is not None]:
            notes.append(
                f"Ignored, for a resumed run goes on as it was begun: {', '.join(ignored)}."
            )
    elif model_id is None or chosen is None:
        missing = "model_id" if model_id is None else "task"
        raise ServerError(
            f"discover_circuit needs {missing}, or the run_id of a run to resume.",
            f"Call discover_circuit(model_id=..., task=...), task one of {', '.join(BUILTIN)}, a task file, or inline pairs.",
        )
    else:
        loaded = session.models.get(model_id)
        if (number := choose_pair_count(drawn, pairs)) != pairs:
            notes.append(f"The task's own number of pairs instead of {pairs}, as the user agreed.")
        if isinstance(budget_answer, AcceptedElicitation) and budget_answer.data.raise_budget:
            budget = BUDGET_FACTOR * await estimate_run_cost(call, model_id, chosen, number, seed)
            notes.append(
                f"The budget was raised to {budget:,.0f} forward-pass equivalents, as the user agreed."
            )
        elif budget is not None:
            notes.append(
                f"The budget is {budget:,.0f} forward-pass equivalents; where it ends before the evaluation, the verdict is inconclusive."
            )

        def begin() -> BackgroundRun:
            read = session.get_task(loaded, to_task_input(chosen), number, seed)
            if len(read) < MIN_VERDICT_PAIRS:
                notes.append(
                    f"{len(read)} pairs: fewer than the {MIN_VERDICT_PAIRS} that a verdict needs, so it can be inconclusive at best."
                )
            source = session.resolve_task_source(to_task_input(chosen))
            load = loaded.request.load_arguments.model_copy(
                update={"pairs": number, "task": source if isinstance(source, str) else None}
            )
            return session.runs.start_discovery(
                loaded, read, load, metric=metric, seed=seed, budget=budget
            )

        made = await run_in_thread(begin)
    if made is not None:
        await wait_for_run(call, made, wait_seconds)
    return await run_in_thread(
        partial(
            _make_result,
            session,
            made.run_id if made is not None and made.run_id else str(run_id),
            notes,
        )
    )


def _resume(session: Session, run_id: str) -> BackgroundRun | None:
    """The run, at work again; None where it is complete."""
    at_work, run = session.runs.find(run_id), session.runs.open(run_id)
    if run.record.kind != "discovery":
        raise ServerError(
            f"The run {run_id} trains an SAE.", f'Go on with it: train_sae(run_id="{run_id}").'
        )
    if at_work is not None:
        return at_work
    return None if run.status == "completed" else session.runs.resume(run_id)


async def wait_for_run(call: ToolContext, background: BackgroundRun, seconds: float) -> None:
    """Wait for the run's end, saying how far it is; a cancelled wait leaves the run at work."""
    told = -1.0
    with anyio.move_on_after(seconds):
        while not background.end_event.is_set():
            progress = background.progress
            if progress.done > told:
                told = progress.done
                # A client that has left does not stop the run.
                with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
                    await call.report_progress(
                        progress.done, progress.estimated_total, progress.label
                    )
            await anyio.sleep(_POLL_SECONDS)


def _make_result(session: Session, run_id: str, notes: list[str]) -> CallToolResult:
    run, background = session.runs.open(run_id), session.runs.find(run_id)
    problem: DiscoveryError | None = session.runs.problem(run_id)
    status = "running" if background else run.status
    circuit = load_circuit_if_any(run) if status == "completed" else None
    views = node_views(circuit) if circuit else []
    if problem is not None and status != "completed":
        notes.append(session.allowed_paths.redact_run_text(str(problem), run.record))
    following = {
        "running": f'run_status(run_id="{run_id}") says how far it is; cancel_run stops it.',
        "completed": f'get_circuit(run_id="{run_id}") gives edges and evidence.',
    }
    result = DiscoverCircuitResult(
        run_id=run_id,
        status=status,
        verdict=circuit.verdict if circuit else None,
        reasons=list(circuit.reasons) if circuit else [],
        nodes=views,
        n_edges=len(circuit.edges) if circuit else None,
        scores=score_views(circuit) if circuit else [],
        progress=progress_view(background) if background else None,
        notes=notes,
        folder=str(run.path) if session.settings.is_local else None,
        next=following.get(status, f'discover_circuit(run_id="{run_id}") goes on with it.'),
        total=len(views),
        cost=cost_view(circuit.cost) if circuit else None,
    )
    return to_call_result(result, run_content(session, run, image=True) if circuit else [])
