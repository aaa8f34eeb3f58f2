"""Which runs there are, page by page, the newest first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from mcp.types import CallToolResult
from pydantic import Field

from discovery.store import RunSummary
from mcp_server.errors import ServerError
from mcp_server.session.devices import in_thread
from mcp_server.tools.arguments import Call, RunId
from mcp_server.tools.result import Listing, Result, answer

Status = Literal["running", "interrupted", "completed", "failed", "damaged"]


class RunLine(Result):
    """One run."""

    run_id: str
    kind: str = Field(description="discovery, or sae: the training of one.")
    status: str
    verdict: str | None
    task: str | None
    model: str | None
    created: str | None
    problem: str | None


class RunList(Listing):
    """What list_runs gives."""

    lists: ClassVar[tuple[str, ...]] = ("runs",)

    runs: list[RunLine]

    def rest_of(self, facts: Mapping[str, Any]) -> str:
        """The call for the next page."""
        last = facts["runs"][-1]["run_id"] if facts["runs"] else None
        return f'list_runs(before="{last}") gives older ones; or give status or task.' if last else self.rest


async def list_runs(
    call: Call,
    status: Annotated[Status | None, Field(description="Only these.")] = None,
    task: Annotated[str | None, Field(description="Only runs of this task.", max_length=200)] = None,
    before: Annotated[RunId | None, Field(description="Only runs begun before this one: the next page.")] = None,
    top: Annotated[int, Field(description="How many, the newest first.", ge=1, le=200)] = 20,
) -> Annotated[CallToolResult, RunList]:
    """Lists the runs (discoveries, trainings of SAEs) that are kept, the newest first, with status and verdict; `narrow` has the call
    for older ones.

    Use it to find a run_id again, or to see whether a behaviour was studied already. Cost: none.

    Example: list_runs(status="interrupted").
    """
    session = call.request_context.lifespan_context
    found = sorted(await in_thread(session.run_list), key=_begun, reverse=True)
    matching = [run for run in found if status in (None, run.status) and task in (None, run.task)]
    older = matching if before is None else _older(found, before, matching)
    rows = [
        RunLine(
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
    return answer(RunList(runs=rows, total=len(matching), truncated=len(older) > top))


def _begun(run: RunSummary) -> str:
    """When a run began, to be compared; of a damaged one its id says it."""
    stamp = re.search(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d)", run.id)
    return run.created or ("{}-{}-{}T{}:{}:{}".format(*stamp.groups()) if stamp else "")


def _older(found: Sequence[RunSummary], before: str, matching: Sequence[RunSummary]) -> list[RunSummary]:
    """Those of `matching` that come after the run `before`."""
    ids = [run.id for run in found]
    if before not in ids:
        raise ServerError(f"There is no run {before!r} to go on behind.", "Take the last run_id of the page before, or leave out `before`.")
    behind = set(ids[ids.index(before) + 1 :])
    return [run for run in matching if run.id in behind]
