"""The tools of heads, as a client calls them."""

from __future__ import annotations

import pytest
from mcp import Client

from tests.mcp_server.servers import INDUCTION_TASK, call_tool_error, call_tool_ok

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


async def test_inline_pairs(client: Client) -> None:
    pair = {"clean": [0, 5, 6, 7, 5], "corrupted": [0, 5, 6, 7, 8], "answer": 6, "wrong": 7}
    result = await call_tool_ok(client, "attention_patterns", model_id="induction", task=[pair])
    assert (result["n"], result["counts"]) == (1, "position")


async def test_what_the_weights_of_a_head_do(client: Client) -> None:
    result = await call_tool_ok(client, "head_weights", model_id="induction", node="L1H1")
    assert result["node"] == "a1.h1"
    assert result["ov"]["same_token"]["value"] > 0.9 > result["ov"]["same_token"]["chance_high"]
    assert all(entry["row"] == entry["column"] for entry in result["ov"]["largest"])
    best = result["reads_from"][0]
    assert (best["node"], best["through"]) == ("a0.h2", "k")
    assert result["figure"].endswith(".png")


async def test_what_a_head_does(client: Client) -> None:
    result = await call_tool_ok(
        client,
        "interpret_head",
        model_id="induction",
        node="a1.h1",
        task=INDUCTION_TASK,
        pairs=16,
        controls=3,
    )
    assert {row["aspect"] for row in result["known"]} >= {"kind", "reads", "writes", "needed"}
    assert all(row["p"] <= 0.05 for row in result["known"])
    assert "Of the kind induction" in result["summary"]
    assert result["looks_at"][0].startswith("B1: ")
    assert result["figure"].endswith(".png")


async def test_name_movers_need_labels(client: Client) -> None:
    message = await call_tool_error(client, "head_kinds", model_id="induction", task=INDUCTION_TASK)
    assert "without the labels IO and S2" in message
