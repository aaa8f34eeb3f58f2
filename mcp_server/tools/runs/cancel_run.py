"""Stopping a run."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from mcp.types import CallToolResult

from mcp_server.errors import ServerError
from mcp_server.session import Session
from mcp_server.session.devices import run_in_thread
from mcp_server.tools.arguments import RunId, ToolContext
from mcp_server.tools.measurement import session_of
from mcp_server.tools.run_state import RunStatusResult, status_result

_WAIT_SECONDS = 10.0  # for the end of the batch that the run is in
_STAGES_SHOWN = 3


async def cancel_run(
    context: ToolContext, run_id: RunId
) -> Annotated[CallToolResult, RunStatusResult]:
    """Stops a run that this server has at work, within one batch. What it finished is kept:
    discover_circuit or train_sae resumes it with its run_id.

    Use it when a run takes too long or the device is needed. A run of another process cannot be
    stopped from here. Cost: none.

    Example: cancel_run(run_id="ioi-bundled-20261120-153012-a1b2").
    """
    return await run_in_thread(partial(_cancel, session_of(context), run_id))


def _cancel(session: Session, run_id: str) -> CallToolResult:
    background = session.runs.find(run_id)
    if background is not None:
        background.job.stop()
        background.end_event.wait(_WAIT_SECONDS)
    elif session.runs.open(run_id).status == "running":
        raise ServerError(
            f"The run {run_id} is at work in another process.", "Stop it there: Ctrl-C, or SIGTERM."
        )
    return status_result(session, run_id, _STAGES_SHOWN)
