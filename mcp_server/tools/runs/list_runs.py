"""Which runs there are, page by page, the newest first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from mcp.types import CallToolResult
from pydantic import Field

from discovery.store import RunSummary
from mcp_server.errors import ServerError
from mcp_server.session.devices import run_in_thread
from mcp_server.tools.arguments import RunId, ToolContext
from mcp_server.tools.result import Listing, Result, to_call_result

StatusName = Literal["running", "interrupted", "completed", "failed", "damaged"]


class RunSummaryView(Result):
    """One run."""

    run_id: str
    kind: str = Field(description="discovery, or sae: the training of one.")
    status: str
    verdict: str | None
    task: str | None
    model: str | None
    created: str | None
    problem: str | None


class ListRunsResult(Listing):
    """What list_runs gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("runs",)

    runs: list[RunSummaryView]

    def make_narrowing_hint(self, facts: Mapping[str, Any]) -> str:
        """The call for the next page."""
        last = facts["runs"][-1]["run_id"] if facts["runs"] else None
        return (
            f'list_runs(before="{last}") gives older ones; or give status or task.'
            if last
            else self.narrowing_hint
        )


async def list_runs(
    call: ToolContext,
    status: Annotated[StatusName | None, Field(description="Only these.")] = None,
    task: Annotated[
        str | None, Field(description="Only runs of this task.", max_length=200)
    ] = None,
    before: Annotated[
        RunId | None, Field(description="Only runs begun before this one: the next page.")
    ] = None,
    top: Annotated[int, Field(description="How many, the newest first.", ge=1, le=200)] = 20,
) -> Annotated[CallToolResult, ListRunsResult]:
    """Lists the runs (discoveries, trainings of SAEs) that are kept, the newest first, with status and verdict; `narrow` has the call
    for older ones.

    Use it to find a run_id again, or to see whether a behaviour was studied already. Cost: none.

    Example: list_runs(status="interrupted").
    """
    session = call.request_context.lifespan_context
    found = sorted(await run_in_thread(session.list_run_summaries), key=_start_time, reverse=True)
    matching = [run for run in found if status in (None, run.status) and task in (None, run.task)]
    older = matching if before is None else _runs_before(found, before, matching)
    rows = [
        RunSummaryView(
            run_id=run.id,
            kind=run.kind,
            status=run.status,
            verdict=run.verdict,
            task=run.task,
            model=run.model,
            created=run.created,
            problem=run.problem,
        )
        for run in older[:top]
    ]
    return to_call_result(
        ListRunsResult(runs=rows, total=len(matching), truncated=len(older) > top)
    )


def _start_time(run: RunSummary) -> str:
    """When a run began, to be compared; of a damaged one its id says it."""
    stamp = re.search(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d)", run.id)
    return run.created or ("{}-{}-{}T{}:{}:{}".format(*stamp.groups()) if stamp else "")


def _runs_before(
    found: Sequence[RunSummary], before: str, matching: Sequence[RunSummary]
) -> list[RunSummary]:
    """Those of `matching` that come after the run `before`."""
    ids = [run.id for run in found]
    if before not in ids:
        raise ServerError(
            f"There is no run {before!r} to go on behind.",
            "Take the last run_id of the page before, or leave out `before`.",
        )
    behind = set(ids[ids.index(before) + 1 :])
    return [run for run in matching if run.id in behind]
