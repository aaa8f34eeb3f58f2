"""The runs in the runs directory, page by page, the newest first."""

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
from mcp_server.tools.measurement import session_of
from mcp_server.tools.result import Listing, Result, to_call_result

StatusName = Literal["running", "interrupted", "completed", "failed", "damaged"]


class RunSummaryView(Result):
    """One run."""

    run_id: str
    kind: str = Field(description="discovery, or sae: the training of an SAE.")
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
        """Return the call for the next page."""
        if not facts["runs"]:
            return self.narrowing_hint
        last = facts["runs"][-1]["run_id"]
        return f'list_runs(before="{last}") gives older ones; or give status or task.'


async def list_runs(
    context: ToolContext,
    status: Annotated[StatusName | None, Field(description="Only runs with this status.")] = None,
    task: Annotated[
        str | None, Field(description="Only runs of this task.", max_length=200)
    ] = None,
    before: Annotated[
        RunId | None, Field(description="Only runs begun before this one: the next page.")
    ] = None,
    top: Annotated[int, Field(description="How many, the newest first.", ge=1, le=200)] = 20,
) -> Annotated[CallToolResult, ListRunsResult]:
    """Lists the runs that are kept (discoveries and trainings of SAEs), the newest first, with
    status and verdict. `narrow` has the call for older ones.

    Use it to find a run_id again, or to see whether a behaviour was studied already. Not for
    following one run: run_status. Cost: none.

    Example: list_runs(status="interrupted").
    """
    summaries = await run_in_thread(session_of(context).list_run_summaries)
    runs = sorted(summaries, key=_start_time, reverse=True)
    matching = [run for run in runs if status in (None, run.status) and task in (None, run.task)]
    page = matching if before is None else _runs_before(runs, before, matching)
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
        for run in page[:top]
    ]
    return to_call_result(ListRunsResult(runs=rows, total=len(matching), truncated=len(page) > top))


def _start_time(run: RunSummary) -> str:
    """Return when a run began, for sorting. For a damaged run only its id says it."""
    if run.created:
        return run.created
    stamp = re.search(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d)", run.id)
    return "{}-{}-{}T{}:{}:{}".format(*stamp.groups()) if stamp else ""


def _runs_before(
    runs: Sequence[RunSummary], before: str, matching: Sequence[RunSummary]
) -> list[RunSummary]:
    """Return those of `matching` that come after the run `before` in the list of all runs.

    Raises:
        ServerError: if there is no such run.
    """
    ids = [run.id for run in runs]
    if before not in ids:
        raise ServerError(
            f"There is no run {before!r} whose older runs could be listed.",
            "Give the last run_id of the previous page, or leave out `before`.",
        )
    older_ids = set(ids[ids.index(before) + 1 :])
    return [run for run in matching if run.id in older_ids]
