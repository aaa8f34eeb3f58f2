"""The circuit that a run found."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar

from mcp.types import CallToolResult
from pydantic import Field

from discovery.graph import CircuitGraph, ModelFacts, TaskFacts
from discovery.store import read_ranking
from mcp_server.errors import ServerError
from mcp_server.session import Session
from mcp_server.session.devices import run_in_thread
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
from mcp_server.tools.measurement import session_of
from mcp_server.tools.result import (
    CostView,
    Listing,
    cost_view,
    round_number,
    to_call_result,
)
from mcp_server.tools.run_state import (
    RunState,
    read_run,
    require_kind,
    resume_hint,
)

_MAX_EVALUATION = 20_000  # characters of the evaluation, beside the nodes and edges


class GetCircuitResult(Listing):
    """What get_circuit gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("edges", "links", "nodes", "reasons")
    narrowing_hint: ClassVar[str] = "Raise top and take detail='detailed', or read circuit.json."

    run_id: str
    status: str
    verdict: str | None
    reasons: list[str]
    model: str | None
    task: str | None
    metric: str | None
    n_discovery: int | None
    n_heldout: int | None
    nodes: list[NodeView]
    ranking: list[NodeView]
    edges: list[EdgeView]
    n_edges: int
    conditions: list[ConditionView]
    scores: list[ScoreView]
    heldout_looks: int | None
    evaluation: dict[str, Any] | None = Field(description="If detailed.")
    links: list[str]
    cost: CostView


async def get_circuit(
    context: ToolContext, run_id: RunId, top: RowLimit = 20, detail: DetailLevel = "concise"
) -> Annotated[CallToolResult, GetCircuitResult]:
    """Gives the circuit that a finished run found: the verdict with its reasons, nodes and edges
    with their effects (largest first), the conditions of the verdict, a drawing, and links to the
    record, the figures and the full grids.

    Use it after discover_circuit completed, or for any run of list_runs. Quote the verdict as it
    is: partial, rejected and inconclusive do not mean verified. Of a run that is still at work, or
    whose budget ended, it gives what there is: a circuit with the reason "not judged yet", or only
    the ranking of single nodes. Cost: none.

    Example: get_circuit(run_id="ioi-bundled-20261120-153012-a1b2").
    """
    is_detailed = detail == "detailed"
    return await run_in_thread(
        partial(_read_circuit, session_of(context), run_id, top, is_detailed)
    )


def _read_circuit(session: Session, run_id: str, top: int, detailed: bool) -> CallToolResult:
    state = read_run(session, run_id)
    require_kind(state.run, "discovery")
    circuit = load_circuit_if_any(state.run)
    if circuit is None:
        circuit = _unjudged_circuit(state)
    result = _make_result(state, circuit, top, detailed)
    return to_call_result(result, run_content(session, state.run, image=True), detailed=detailed)


def _unjudged_circuit(state: RunState) -> CircuitGraph:
    """Return a record without nodes, for a run that has a ranking and no circuit yet.

    Raises:
        ServerError: if it has no ranking either.
    """
    run = state.run
    if not read_ranking(run.events()):
        wait = f'Wait: run_status(run_id="{run.id}").'
        raise ServerError(
            f"The run {run.id} is {state.status} and has neither a circuit nor a ranking yet.",
            wait if state.status == "running" else resume_hint(run.id, "discovery"),
        )
    record = run.record
    return CircuitGraph(
        run_id=run.id,
        model=ModelFacts(name=record.model.name),
        task=TaskFacts(name=record.task),
        reasons=("not judged yet: there is a ranking of single nodes and no circuit",),
        cost=record.cost,
    )


def _ranking_views(state: RunState, top: int) -> list[NodeView]:
    return [
        NodeView(
            id=str(ranked.node),
            label=ranked.node.label,
            denoising=round_number(ranked.denoising, 4),
            noising=round_number(ranked.noising, 4),
            sign=None,
            role=None,
            positions=None,
        )
        for ranked in read_ranking(state.run.events())[:top]
    ]


def _make_result(
    state: RunState, circuit: CircuitGraph, top: int, detailed: bool
) -> GetCircuitResult:
    nodes = node_views(circuit, detailed=True)
    edges = edge_views(circuit)
    block = evaluation_block(circuit.evaluation, detailed=True) if detailed else None
    evaluation = shorten_evaluation(block, _MAX_EVALUATION) if block else None
    model_name = circuit.model.name
    format_path = state.session.allowed_paths.format_path
    return GetCircuitResult(
        run_id=state.run.id,
        status=state.status,
        verdict=circuit.verdict,
        reasons=list(circuit.reasons),
        model=format_path(model_name) if model_name else None,
        task=circuit.task.name,
        metric=circuit.task.metric,
        n_discovery=circuit.task.n_discovery,
        n_heldout=circuit.task.n_heldout,
        nodes=nodes[:top],
        ranking=[] if circuit.size else _ranking_views(state, top),
        edges=edges[: 2 * top],
        n_edges=len(edges),
        conditions=condition_views(circuit),
        scores=score_views(circuit),
        heldout_looks=circuit.evaluation.heldout_looks,
        evaluation=evaluation,
        links=[link.uri for link in run_links(state.run)],
        total=len(nodes),
        truncated=len(nodes) > top or len(edges) > 2 * top or evaluation is not block,
        cost=cost_view(circuit.cost),
    )
