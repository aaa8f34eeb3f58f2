"""How far a run is."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from mcp.types import CallToolResult
from pydantic import Field

from mcp_server.session.devices import run_in_thread
from mcp_server.tools.arguments import RunId, ToolContext
from mcp_server.tools.measurement import session_of
from mcp_server.tools.run_state import RunStatusResult, status_result


async def run_status(
    context: ToolContext,
    run_id: RunId,
    top: Annotated[int, Field(description="How many of the latest stages.", ge=1, le=100)] = 8,
) -> Annotated[CallToolResult, RunStatusResult]:
    """Says how far a run is: its stages with what each concluded, what it does at present, and the
    verdict when it is done.

    Use it about every 30 seconds after discover_circuit or train_sae returned with status running.
    For the circuit itself use get_circuit. Cost: none; it does not wait for the device.

    Example: run_status(run_id="ioi-bundled-20261120-153012-a1b2").
    """
    return await run_in_thread(partial(status_result, session_of(context), run_id, top))
