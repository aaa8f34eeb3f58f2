"""The state of a run in the runs directory, and how the tools on runs show it.

A run may be at work in this process, at work in another process, or not at work at all. Several
tools start, resume, follow or stop runs; what they share is here.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import anyio
from mcp.types import CallToolResult
from pydantic import Field

from discovery.errors import DiscoveryError
from discovery.store import Run, RunKind, read_candidate, read_ranking
from mcp_server.errors import ServerError
from mcp_server.session import Session, lazy_discovery
from mcp_server.session.runs import BackgroundRun
from mcp_server.tools.arguments import ToolContext
from mcp_server.tools.circuit_views import load_circuit_if_any
from mcp_server.tools.result import (
    CostView,
    Listing,
    Result,
    cost_view,
    round_number,
    to_call_result,
)

_POLL_SECONDS = 0.1  # between two looks at a run that is waited for
_RANKED_SHOWN = 8
_MAX_STAGE_TEXT = 400  # characters of what a stage concluded
_KINDS: dict[
    RunKind, tuple[str, str]
] = {  # what a run of the kind does, and the tool that resumes it
    "discovery": ("discovers a circuit", "discover_circuit"),
    "sae": ("trains an SAE", "train_sae"),
}


class ProgressView(Result):
    """How far the run is, in forward-pass equivalents; the training of an SAE in tokens."""

    doing: str
    done: float | None
    of_about: float | None = Field(
        description="Of the whole run, at most its budget; null before it is planned."
    )
    seconds_left: float | None = Field(description="Until the end, at the measured rate.")
    stopping: bool


class RankedNodeView(Result):
    """What a node does alone, as shares of clean − corrupted. A ranking is no circuit."""

    id: str
    label: str
    denoising: float | None
    noising: float | None


def ranking_views(run: Run, top: int) -> list[RankedNodeView]:
    """Return the nodes with the largest effects alone, from the journal of a run."""
    return [
        RankedNodeView(
            id=str(ranked.node),
            label=ranked.node.label,
            denoising=round_number(ranked.denoising, 4),
            noising=round_number(ranked.noising, 4),
        )
        for ranked in read_ranking(run.events())[:top]
    ]


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
    progress: ProgressView | None = Field(description="If this server has the run at work.")
    stages: list[StageView] = Field(description="The latest last.")
    verdict: str | None
    candidate: list[str] = Field(
        description="The circuit so far, not judged; empty once there is a verdict."
    )
    ranking: list[RankedNodeView] = Field(
        description="Largest effects of single nodes, not judged; empty once there is a verdict."
    )
    problem: str | None
    next: str
    cost: CostView


@dataclass(frozen=True, kw_only=True)
class RunState:
    """A run as it is at the moment.

    Attributes:
        session: the session of this server.
        run: its folder, opened for reading.
        background: the run, if this process has it at work.
        status: running, completed, interrupted or failed.
        session_problem: what ended the run early in this process.
    """

    session: Session
    run: Run
    background: BackgroundRun | None
    status: str
    session_problem: DiscoveryError | None

    @property
    def progress(self) -> ProgressView | None:
        """How far the run is, if this process has it at work."""
        return None if self.background is None else progress_view(self.background)

    @property
    def folder(self) -> str | None:
        """The path of its folder, for clients on this machine."""
        return str(self.run.path) if self.session.settings.is_local else None

    @property
    def problem(self) -> str | None:
        """What ended the run early, in this process or in an earlier one, without paths."""
        if self.session_problem is not None:
            return self._redact_problem(str(self.session_problem))
        return self._redact_problem(self.run.record.problem)

    @property
    def new_problem(self) -> str | None:
        """What ended the run early in this process, without paths."""
        return self._redact_problem(str(self.session_problem) if self.session_problem else None)

    def _redact_problem(self, text: str | None) -> str | None:
        """A run that was completed later has no problem any more."""
        if not text or self.status == "completed":
            return None
        return self.session.allowed_paths.redact_run_text(text, self.run.record)


def read_run(session: Session, run_id: str) -> RunState:
    """Return the present state of a run.

    Raises:
        StoreError: if there is no such run, or its folder is damaged.
        PathNotAllowedError: if its folder leads out of the runs directory.
    """
    run = session.runs.open(run_id)
    background = session.runs.find(run_id)
    return RunState(
        session=session,
        run=run,
        background=background,
        status="running" if background else run.status,
        session_problem=session.runs.problem(run_id),
    )


def resume_run(
    session: Session, run_id: str, kind: RunKind, budget: float | None = None
) -> BackgroundRun | None:
    """Continue an interrupted run, and return it; None if it is complete.

    Args:
        session: the session of this server.
        run_id: the run.
        kind: what the run must do.
        budget: the larger budget with which a discovery goes on whose budget ended.

    Raises:
        MeasurementError: if the budget is no larger than the run's own.
        ServerError: if the run is of another kind, or too many runs are at work.
        StoreError: if there is no such run, or another process writes to it.
        PathNotAllowedError: if this server may not load the run's model.
    """
    background = session.runs.find(run_id)
    run = session.runs.open(run_id)
    require_kind(run, kind)
    if background is not None:
        return background
    if budget is None:
        is_finished = run.status == "completed"
    else:
        is_finished = lazy_discovery.is_finished(run, budget)
    return None if is_finished else session.runs.resume(run_id, budget)


def require_kind(run: Run, kind: RunKind) -> None:
    """Raise ServerError if a run is not of this kind; the message names the tool that fits."""
    if run.record.kind != kind:
        does, tool = _KINDS[run.record.kind]
        wanted, _ = _KINDS[kind]
        raise ServerError(
            f"The run {run.id} {does}; it is not a run that {wanted}.",
            f'Use {tool}(run_id="{run.id}").',
        )


async def wait_for_run(context: ToolContext, background: BackgroundRun, seconds: float) -> None:
    """Wait for the end of a run, and report its progress to the client meanwhile.

    Neither the end of the wait nor a cancelled call stops the run.
    """
    reported = -1.0
    with anyio.move_on_after(seconds):
        while not background.end_event.is_set():
            progress = background.progress
            if progress.done > reported:
                reported = progress.done
                # A client that has left does not stop the run.
                with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
                    await context.report_progress(
                        progress.done, progress.estimated_total, progress.label
                    )
            await anyio.sleep(_POLL_SECONDS)


def progress_view(background: BackgroundRun) -> ProgressView:
    """Return how far a run of this process is, with what earlier processes did of it."""
    progress = background.progress
    outlook = background.outlook
    earlier = outlook.earlier if outlook else 0.0
    total = progress.estimated_total
    remaining_seconds = None
    if outlook is not None and total is not None:
        remaining_seconds = (total - progress.done) / outlook.rate
    return ProgressView(
        doing=progress.label,
        done=round_number(earlier + progress.done),
        of_about=round_number(earlier + total) if total is not None else None,
        seconds_left=round_number(remaining_seconds, 3),
        stopping=background.job.is_stopping,
    )


def follow_hint(run_id: str) -> str:
    """Return what to call while a run is at work."""
    return f'run_status(run_id="{run_id}") says how far it is; cancel_run stops it.'


def resume_hint(run_id: str, kind: RunKind) -> str:
    """Return what to call to continue an interrupted run."""
    _, tool = _KINDS[kind]
    return f'{tool}(run_id="{run_id}") resumes it.'


def status_result(session: Session, run_id: str, top: int) -> CallToolResult:
    """Return the state of a run with its latest stages, as run_status and cancel_run give it."""
    state = read_run(session, run_id)
    record = state.run.record
    is_judged = state.status == "completed" and record.kind == "discovery"
    circuit = load_circuit_if_any(state.run) if is_judged else None
    stages = [
        event
        for event in state.run.events()
        if "stage" in event and event.get("kind") != "decision"
    ]
    model_name = record.model.name
    return to_call_result(
        RunStatusResult(
            run_id=run_id,
            status=state.status,
            task=record.task,
            model=session.allowed_paths.format_path(model_name) if model_name else None,
            created=record.created,
            progress=state.progress,
            stages=[_stage_view(event) for event in stages[-top:]],
            verdict=circuit.verdict if circuit else None,
            candidate=[] if circuit else [str(node) for node in read_candidate(state.run.events())],
            ranking=[] if circuit else ranking_views(state.run, _RANKED_SHOWN),
            problem=state.problem,
            next=_next_call(state, record.kind),
            total=len(stages),
            truncated=len(stages) > top,
            cost=cost_view(circuit.cost if circuit else record.cost),
        )
    )


def _stage_view(event: dict[str, Any]) -> StageView:
    def text(name: str) -> str:
        return str(event.get(name) or "")[:_MAX_STAGE_TEXT]

    return StageView(stage=text("stage"), concluded=text("concluded"), why=text("why"))


def _next_call(state: RunState, kind: RunKind) -> str:
    """Return what to call next."""
    run_id = state.run.id
    if state.status == "running":
        if state.background is None:
            return "Another process has it at work: wait for it, or stop it there."
        return f'run_status(run_id="{run_id}") in a while.'
    if state.status != "completed":
        return resume_hint(run_id, kind)
    if kind == "sae":
        return f'train_sae(run_id="{run_id}") has its scores.'
    return f'get_circuit(run_id="{run_id}").'
