"""attention_patterns and head_kinds, as a client calls them."""

from __future__ import annotations

import pytest
from mcp import Client

from tests.mcp_server.servers import INDUCTION_TASK, call_tool_ok

pytestmark = pytest.mark.anyio


async def test_where_a_head_looks(client: Client) -> None:
    answer = await client.call_tool(
        "attention_patterns",
        {"model_id": "induction", "task": INDUCTION_TASK, "nodes": ["a1.h1"], "pairs": 16},
    )
    assert not answer.is_error, answer.content
    result = answer.structured_content
    assert result is not None
    assert result["counts"] == "label"
    assert result["heads"][0]["sources"][0]["source"] == "B1"
    assert result["heads"][0]["sources"][0]["share"]["mean"] > 0.9
    assert [block.type for block in answer.content] == ["text", "image", "resource_link"]


async def test_all_heads_without_a_picture(client: Client) -> None:
    result = await call_tool_ok(
        client, "attention_patterns", model_id="induction", prompt=[0, 5, 6, 7, 5]
    )
    assert result["figure"] is None
    assert result["total"] == 8
    shares = [row["sources"][0]["share"]["mean"] for row in result["heads"]]
    assert shares == sorted(shares, reverse=True)


async def test_the_kinds_of_a_known_model(client: Client) -> None:
    result = await call_tool_ok(client, "head_kinds", model_id="induction")
    kinds = {kind["kind"]: kind for kind in result["kinds"]}
    assert [row["node"] for row in kinds["induction"]["heads"]] == ["a1.h1"]
    assert [row["node"] for row in kinds["previous_token"]["heads"]] == ["a0.h2"]
    check = kinds["induction"]["check"]
    assert check["change"]["low"] > sorted(check["controls"])[-2]
