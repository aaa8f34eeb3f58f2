"""The whole discovery of a circuit, in the background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from mcp.types import CallToolResult
from pydantic import Field

from discovery.sites import MetricName, Universe
from discovery.tasks import BUILTIN
from mcp_server.errors import ServerError
from mcp_server.session import Session, lazy_discovery
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
    TimeLimit,
    ToolContext,
    parse_time_limit,
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
from mcp_server.tools.measurement import Measurement, run_measurement, session_of
from mcp_server.tools.result import (
    CostView,
    Listing,
    cost_view,
    round_number,
    to_call_result,
)
from mcp_server.tools.run_state import (
    ProgressView,
    RunState,
    follow_hint,
    read_run,
    resume_hint,
    resume_run,
    wait_for_run,
)

if TYPE_CHECKING:
    from discovery.agent import CostEstimate


class DiscoverCircuitResult(Listing):
    """What discover_circuit gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("nodes", "reasons")
    narrowing_hint: ClassVar[str] = (
        "get_circuit(run_id=..., top=500, detail='detailed') lists more; circuit.json holds "
        "everything."
    )

    run_id: str | None
    status: str = Field(
        description="running: poll run_status; completed; interrupted: call again with run_id; "
        "failed; estimated: nothing was run."
    )
    verdict: str | None
    reasons: list[str]
    nodes: list[NodeView]
    n_edges: int | None
    scores: list[ScoreView]
    progress: ProgressView | None
    estimate: dict[str, Any] | None = Field(
        description="Of a dry run. Of each stage: forward-pass equivalents, seconds, and what the "
        "budget gives it."
    )
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
            description="Built-in task, .jsonl task file, or pairs [{clean, corrupted, answer, "
            "wrong}]; needed unless run_id is given."
        ),
    ] = None,
    run_id: Annotated[
        str | None,
        Field(
            description="Resume this interrupted run, or with a larger budget one whose budget "
            "ended; the other arguments are its own.",
            max_length=200,
        ),
    ] = None,
    metric: MetricChoice = None,
    budget: Budget | None = None,
    time_limit: TimeLimit | None = None,
    universe: Annotated[Universe, Field(description="What may be ablated.")] = "all",
    dry_run: Annotated[
        bool,
        Field(description="Only estimate work and time."),
    ] = False,
    pairs: Annotated[
        int | None,
        Field(
            description="Prompt pairs; default: the task's own number (240 for built-in ones). A "
            f"verdict needs {MIN_VERDICT_PAIRS}.",
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
    """Finds the circuit behind a behaviour on its own and judges it: checks the behaviour, ranks
    heads and MLPs, finds a circuit on discovery pairs, tests it on held-out pairs against controls,
    describes it by sweeps and edges, and writes a record with figures. The verdict is computed.

    Use it when the question is "which heads and MLPs do this, and is that proven?". Not for a quick
    look (patch_sweep), nor for nodes that you chose yourself (evaluate_circuit). It returns when
    the run is done, or after `wait_seconds` with status running: then poll run_status(run_id), and
    call get_circuit(run_id) at the end. The run continues even if this call is cancelled;
    cancel_run stops it. A budget or time_limit buys a ranking first, then a circuit, its verdict,
    and descriptions; run_id with a larger budget goes on. Cost: thousands of forward passes
    (dry_run estimates them); ioi in the bundled model 1 to 5 minutes.

    Example: discover_circuit(model_id="bundled", task="ioi").
    """
    session = session_of(context)
    notes: list[str] = []
    if run_id is not None:
        background = await run_in_thread(partial(resume_run, session, run_id, "discovery", budget))
        arguments = {
            "model_id": model_id,
            "task": task,
            "metric": metric,
            "time_limit": time_limit,
            "pairs": pairs,
            "seed": seed or None,
            "dry_run": dry_run or None,
        }
        notes += _notes_on_ignored(arguments)
    else:
        source = choose_task(behaviour_answer, task)
        if model_id is None or source is None:
            raise _missing_argument("model_id" if model_id is None else "task")
        n_pairs = choose_pair_count(pair_count_answer, pairs)
        notes += _notes_on_pairs(pairs, n_pairs)
        request = _Request(
            model_id=model_id,
            source=source,
            pairs=n_pairs,
            metric=metric,
            seed=seed,
            universe=universe,
            budget=budget,
        )
        if wants_higher_budget(budget_answer):
            request, note = await _raise_budget(context, request)
            notes.append(note)
        if time_limit is not None:
            request, note = await _limit_time(context, request, parse_time_limit(time_limit))
            notes.append(note)
        if dry_run:
            return _estimate_result(await _estimate(context, request), notes)
        background, run_notes = await run_in_thread(partial(_start_run, session, request))
        notes += [*_notes_on_budget(request.budget), *run_notes]
    return await _wait_for_result(context, background, run_id, wait_seconds, notes)


async def _raise_budget(context: ToolContext, request: _Request) -> tuple[_Request, str]:
    """Return the request with a budget that its estimate fits in, and a note on it."""
    estimate = await estimate_run_cost(
        context, request.model_id, request.source, request.pairs, request.seed
    )
    budget = BUDGET_FACTOR * estimate
    return replace(request, budget=budget), _note_on_raised_budget(budget)


async def _wait_for_result(
    context: ToolContext,
    background: BackgroundRun | None,
    run_id: str | None,
    wait_seconds: float,
    notes: list[str],
) -> CallToolResult:
    """Wait for a run, unless it had finished before, and describe it."""
    if background is not None:
        await wait_for_run(context, background, wait_seconds)
        run_id = background.run_id or run_id
    return await run_in_thread(partial(_make_result, session_of(context), str(run_id), notes))


def _notes_on_pairs(asked: int | None, used: int | None) -> list[str]:
    """Return what the user agreed to, if it is another number of pairs than was asked for."""
    if asked == used:
        return []
    return [f"The task's own number of pairs instead of {asked}, as the user agreed."]


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What a new run is asked for; see the arguments of the tool."""

    model_id: str
    source: TaskName | PairList
    pairs: int | None
    metric: MetricName | None
    seed: int
    universe: Universe
    budget: float | None


async def _estimate(context: ToolContext, request: _Request) -> CostEstimate:
    """Estimate what the run takes; both sides of each prompt are run once."""

    def measure(measurement: Measurement) -> CostEstimate:
        task = measurement.session.get_task(
            measurement.model, to_task_input(request.source), request.pairs, request.seed
        )
        return lazy_discovery.estimate_cost(
            measurement.backend,
            task,
            metric=request.metric,
            universe=request.universe,
            budget=request.budget,
            memory=measurement.memory,
            seed=request.seed,
        )

    return await run_measurement(context, request.model_id, "estimate", measure)


async def _limit_time(
    context: ToolContext, request: _Request, seconds: float
) -> tuple[_Request, str]:
    """Return the request with the budget that so many seconds buy, and a note that says so."""
    estimate = await _estimate(context, request)
    budget = seconds * estimate.rate
    if request.budget is not None:
        budget = min(budget, request.budget)
    note = (
        f"{seconds:,.0f} seconds buy about {seconds * estimate.rate:,.0f} forward-pass "
        f"equivalents at the measured {estimate.rate:,.0f} a second."
    )
    return replace(request, budget=budget), note


def _estimate_result(estimate: CostEstimate, notes: Sequence[str]) -> CallToolResult:
    plan = estimate.plan
    stages = {
        stage: [
            round_number(work),
            round_number(work / estimate.rate, 3),
            None if plan is None else round_number(plan.shares.get(stage, 0.0)),
        ]
        for stage, work in estimate.stages.items()
    }
    view = {
        "forward_equivalents": round_number(estimate.forward_equivalents),
        "seconds": round_number(estimate.seconds, 3),
        "rate": round_number(estimate.rate, 3),
        "reaches_verdict": plan is None or plan.reaches_verdict,
        "stages": stages,
    }
    return to_call_result(
        DiscoverCircuitResult(
            run_id=None,
            status="estimated",
            verdict=None,
            reasons=[],
            nodes=[],
            n_edges=None,
            scores=[],
            progress=None,
            estimate=view,
            notes=[*notes, estimate.note],
            folder=None,
            next="discover_circuit without dry_run runs it.",
            total=0,
            cost=None,
        )
    )


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


def _note_on_raised_budget(budget: float) -> str:
    return f"The budget was raised to {budget:,.0f} forward-pass equivalents, as the user agreed."


def _notes_on_budget(budget: float | None) -> list[str]:
    if budget is None:
        return []
    return [
        f"The budget is {budget:,.0f} forward-pass equivalents. The stage `plan` of run_status "
        "says what it does not reach. If it ends before the evaluation, the verdict is "
        "inconclusive."
    ]


def _start_run(session: Session, request: _Request) -> tuple[BackgroundRun, list[str]]:
    """Start a new run, and return it when its folder exists, with notes on its pairs."""
    loaded = session.models.get(request.model_id)
    source = to_task_input(request.source)
    task = session.get_task(loaded, source, request.pairs, request.seed)
    notes = []
    if len(task) < MIN_VERDICT_PAIRS:
        notes.append(
            f"{len(task)} pairs: fewer than the {MIN_VERDICT_PAIRS} that a verdict needs, so it "
            "can be inconclusive at best."
        )
    resolved = session.resolve_task_source(source)
    load = loaded.request.load_arguments.model_copy(
        update={"pairs": request.pairs, "task": resolved if isinstance(resolved, str) else None}
    )
    background = session.runs.start_discovery(
        loaded,
        task,
        load,
        metric=request.metric,
        seed=request.seed,
        universe=request.universe,
        budget=request.budget,
    )
    return background, notes


def _plan_notes(state: RunState) -> list[str]:
    """Return what the plan of a run says is left, and what its budget does not reach."""
    plans = [event for event in state.run.events() if event.get("kind") == "plan"]
    return [f"Plan: {plans[-1]['concluded']}."] if plans and state.status != "completed" else []


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
        estimate=None,
        notes=[*notes, *_plan_notes(state), *problems],
        folder=state.folder,
        next=following.get(state.status, resume_hint(run_id, "discovery")),
        total=len(nodes),
        cost=cost_view(circuit.cost) if circuit else None,
    )
    return to_call_result(result, run_content(session, state.run, image=True) if circuit else [])
