"""check_task: a task that the model does not do, and results that stay short."""

from __future__ import annotations

import pytest
from mcp import Client

from tests.mcp_server.servers import (
    call_tool_ok,
)

pytestmark = pytest.mark.anyio


async def test_check_task_on_a_task_that_the_model_does_not_do(client: Client) -> None:
    pairs = [
        {
            "clean": [0, n, n + 1, n + 2],
            "corrupted": [0, n + 1, n, n + 2],
            "answer": n,
            "wrong": n + 1,
        }
        for n in range(1, 13)
    ]
    result = await call_tool_ok(client, "check_task", model_id="induction", task=pairs)
    assert result["behaviour"] is False
    assert result["reasons"]
