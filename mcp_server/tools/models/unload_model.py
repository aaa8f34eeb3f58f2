"""Dropping a model from memory."""

from __future__ import annotations

from typing import Annotated

from mcp.types import CallToolResult
from pydantic import Field

from mcp_server.tools.arguments import ModelId, ToolContext
from mcp_server.tools.measurement import session_of
from mcp_server.tools.result import Result, to_call_result


class UnloadModelResult(Result):
    """What unload_model gives."""

    model_id: str
    loaded: list[str] = Field(description="What is still in memory.")


async def unload_model(
    context: ToolContext, model_id: ModelId
) -> Annotated[CallToolResult, UnloadModelResult]:
    """Drops a model from memory. Runs and results made with it stay; a run at work finishes with
    it.

    Use it to make room before loading a larger model. Not needed otherwise: models are dropped by
    themselves when memory is short. Cost: none.

    Example: unload_model(model_id="bundled").
    """
    session = session_of(context)
    session.models.unload(model_id)
    remaining = [loaded.model_id for loaded in session.models.list_loaded()]
    return to_call_result(UnloadModelResult(model_id=model_id, loaded=remaining))
