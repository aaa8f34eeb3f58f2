"""Runs: how far, stop, what was found."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar

from mcp.types import CallToolResult
from pydantic import Field

from discovery.store import RunKind
from mcp_server.errors import ServerError
from mcp_server.session import Session
from mcp_server.session.devices import run_in_thread
from mcp_server.session.runs import BackgroundRun
from mcp_server.tools.arguments import DetailLevel, RowLimit, RunId, ToolContext
from mcp_server.tools.circuit_views import (
    ConditionView,
    EdgeView,
    NodeView,
    ScoreView,
    condition_views,
    edge_views,
    evaluation_block,
    load_circuit_if_any,
    node_views,
    run_content,
    run_links,
    score_views,
    shorten_evaluation,
)
from mcp_server.tools.result import (
    CostView,
    Listing,
    Result,
    cost_view,
    round_number,
    to_call_result,
)


class ProgressView(Result):
    """How far the run is, in forward-pass equivalents; the training of an SAE in tokens."""

    doing: str
    done: float | None
    of_about: float | None = Field(
        description="Of the whole run, as estimated before it; null where that is not known."
    )
    stopping: bool


class StageView(Result):
    """What a stage concluded."""

    stage: str
    concluded: str
    why: str


class RunStatusResult(Listing):
    """What run_status and cancel_run give."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("stages",)
    keeps_newest: ClassVar[bool] = True
    narrowing_hint: ClassVar[str] = (
        "These are the latest stages: raise top for more, or read the run's events.jsonl."
    )

    run_id: str
    status: str
    task: str | None
    model: str | None
    created: str | None
    progress: ProgressView | None = Field(description="Where this server has the run at work.")
    stages: list[StageView] = Field(description="The latest last.")
    verdict: str | None
    problem: str | None
    next: str
    cost: CostView


class GetCircuitResult(Listing):
    """What get_circuit gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("edges", "links", "nodes", "reasons")
    narrowing_hint: ClassVar[str] = "Raise top and take detail='detailed', or read circuit.json."

    run_id: str
    verdict: str | None
    reasons: list[str]
    model: str | None
    task: str | None
    metric: str | None
    n_discovery: int | None
    n_heldout: int | None
    nodes: list[NodeView]
    edges: list[EdgeView]
    n_edges: int
    conditions: list[ConditionView]
    scores: list[ScoreView]
    heldout_looks: int | None
    evaluation: dict[str, Any] | None = Field(
        description="The whole block of circuit.json, where detail is detailed."
    )
    links: list[str] = Field(description="URIs of everything that the run left.")
    cost: CostView


async def run_status(
    call: ToolContext,
    run_id: RunId,
    top: Annotated[int, Field(description="How many of the latest stages.", ge=1, le=100)] = 8,
) -> Annotated[CallToolResult, RunStatusResult]:
    """Says how far a run is: its stages with what each concluded, the work at hand, and, when it is done, the verdict.

    Use it after discover_circuit or train_sae returned with status running, every 30 seconds or so. For the circuit itself:
    get_circuit. Cost: none; it does not wait for the device.

    Example: run_status(run_id="ioi-bundled-20261120-153012-a1b2").
    """
    session = call.request_context.lifespan_context
    return await run_in_thread(partial(_make_status_result, session, run_id, top))


async def cancel_run(
    call: ToolContext, run_id: RunId
) -> Annotated[CallToolResult, RunStatusResult]:
    """Stops a run that this server has at work, within one batch. What it finished is kept: discover_circuit, or train_sae, goes on
    with its run_id.

    Use it when a run takes too long or the device is needed. A run of another process cannot be stopped from here. Cost: none.

    Example: cancel_run(run_id="ioi-bundled-20261120-153012-a1b2").
    """
    session = call.request_context.lifespan_context
    return await run_in_thread(partial(_cancel, session, run_id))


async def get_circuit(
    call: ToolContext, run_id: RunId, top: RowLimit = 20, detail: DetailLevel = "concise"
) -> Annotated[CallToolResult, GetCircuitResult]:
    """Gives the circuit that a finished run found: verdict with reasons, nodes and edges with their effects (largest first), the
    conditions of the verdict, and links to the record, figures and full grids; and a drawing.

    Use it after discover_circuit completed, or for any run of list_runs. Quote the verdict as it is: partial, rejected and inconclusive
    are not verified. Cost: none.

    Example: get_circuit(run_id="ioi-bundled-20261120-153012-a1b2").
    """
    session = call.request_context.lifespan_context
    return await run_in_thread(partial(_make_result, session, run_id, top, detail == "detailed"))


def progress_view(background: BackgroundRun) -> ProgressView:
    """How far a run of this process is."""
    progress = background.progress
    return ProgressView(
        doing=progress.label,
        done=round_number(progress.done),
        of_about=round_number(progress.estimated_total),
        stopping=background.job.is_stopping,
    )


def _make_status_result(session: Session, run_id: str, top: int) -> CallToolResult:
    run, background = session.runs.open(run_id), session.runs.find(run_id)
    record, status = run.record, "running" if background else run.status
    stages = [
        event for event in run.events() if "stage" in event and event.get("kind") != "decision"
    ]
    problem = session.runs.problem(run_id)
    told = str(problem) if problem is not None else record.problem
    circuit = (
        load_circuit_if_any(run) if status == "completed" and record.kind == "discovery" else None
    )
    return to_call_result(
        RunStatusResult(
            run_id=run_id,
            status=status,
            task=record.task,
            model=session.allowed_paths.format_path(record.model.name)
            if record.model.name
            else None,
            created=record.created,
            progress=progress_view(background) if background else None,
            stages=[_stage_view(event) for event in stages[-top:]],
            verdict=circuit.verdict if circuit else None,
            problem=session.allowed_paths.redact_run_text(told, record)
            if told and status != "completed"
            else None,
            next=_next_call(run_id, status, background, record.kind),
            total=len(stages),
            truncated=len(stages) > top,
            cost=cost_view(circuit.cost if circuit else record.cost),
        )
    )


def _stage_view(event: dict[str, Any]) -> StageView:
    return StageView(
        **{name: str(event.get(name) or "")[:400] for name in ("stage", "concluded", "why")}
    )


def _next_call(run_id: str, status: str, background: BackgroundRun | None, kind: RunKind) -> str:
    if status == "running":
        return (
            f'run_status(run_id="{run_id}") in a while.'
            if background
            else "Another process has it at work: wait for it, or stop it there."
        )
    if kind == "sae":
        return f'train_sae(run_id="{run_id}") {"has its scores" if status == "completed" else "goes on with it"}.'
    if status == "completed":
        return f'get_circuit(run_id="{run_id}").'
    return f'discover_circuit(run_id="{run_id}") goes on with it.'


def _cancel(session: Session, run_id: str) -> CallToolResult:
    background = session.runs.find(run_id)
    if background is None:
        status = session.runs.open(run_id).status
        if status == "running":
            raise ServerError(
                f"The run {run_id} is at work in another process.",
                "Stop it there: Ctrl-C, or SIGTERM.",
            )
    else:
        background.job.stop()
        background.end_event.wait(10.0)
    return _make_status_result(session, run_id, 3)


def _make_result(session: Session, run_id: str, top: int, detailed: bool) -> CallToolResult:
    run = session.runs.open(run_id)
    if run.record.kind != "discovery":
        raise ServerError(
            f"The run {run_id} trains an SAE: it has no circuit.",
            f'See it: train_sae(run_id="{run_id}").',
        )
    circuit = load_circuit_if_any(run)
    if circuit is None:
        status = "running" if session.runs.find(run_id) else run.status
        cure = (
            f'Wait: run_status(run_id="{run_id}").'
            if status == "running"
            else f'Go on with it: discover_circuit(run_id="{run_id}").'
        )
        raise ServerError(f"The run {run_id} is {status} and has no circuit yet.", cure)
    nodes, edges = node_views(circuit), edge_views(circuit)
    block = evaluation_block(circuit.evaluation, detailed=True) if detailed else None
    evaluation = shorten_evaluation(block, 20_000) if block else None
    more = len(nodes) > top or len(edges) > 2 * top or evaluation is not block
    result = GetCircuitResult(
        run_id=run_id,
        verdict=circuit.verdict,
        reasons=list(circuit.reasons),
        model=session.allowed_paths.format_path(circuit.model.name) if circuit.model.name else None,
        task=circuit.task.name,
        metric=circuit.task.metric,
        n_discovery=circuit.task.n_discovery,
        n_heldout=circuit.task.n_heldout,
        nodes=nodes[:top],
        edges=edges[: 2 * top],
        n_edges=len(edges),
        conditions=condition_views(circuit),
        scores=score_views(circuit),
        heldout_looks=circuit.evaluation.heldout_looks,
        evaluation=evaluation,
        links=[uri for uri, _, _ in run_links(run)],
        total=len(nodes),
        truncated=more,
        cost=cost_view(circuit.cost),
    )
    return to_call_result(result, run_content(session, run, image=True), detailed=detailed)
