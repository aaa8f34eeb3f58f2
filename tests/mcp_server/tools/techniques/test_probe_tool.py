"""The tool probe, as a client calls it."""

from __future__ import annotations

import pytest
from mcp import Client

from tests.mcp_server.servers import INDUCTION_TASK, call_tool_ok

pytestmark = pytest.mark.anyio


async def test_a_label_of_a_task(client: Client) -> None:
    answer = await client.call_tool(
        "probe",
        {
            "model_id": "induction",
            "task": INDUCTION_TASK,
            "label": "before:A1,C2",
            "positions": ["A1"],
            "pairs": 60,
        },
    )
    assert not answer.is_error, answer.content
    result = answer.structured_content
    assert result is not None
    assert result["classes"].keys() == {"A1 before C2", "C2 before A1"}
    assert [cell["layer"] for cell in result["cells"]] == [0, 1]
    for cell in result["cells"]:
        assert cell["selectivity"] == pytest.approx(
            cell["accuracy"]["mean"] - cell["shuffled"], abs=1e-4
        )
    assert result["removal"]["position"] == "A1"
    assert [block.type for block in answer.content] == ["text", "image", "resource_link"]


async def test_labelled_prompts(client: Client) -> None:
    examples = [
        {"prompt": [0, 1 + number % 12], "label": "low" if number % 12 < 6 else "high"}
        for number in range(48)
    ]
    result = await call_tool_ok(client, "probe", model_id="induction", examples=examples)
    assert result["removal"] is None
    assert result["n"] == 48
    first = result["cells"][0]
    assert first["accuracy"]["mean"] > 0.95
    assert (first["token"], first["p"]) == (1.0, 1.0)  # no more than the token itself says


async def test_a_task_and_prompts_are_refused(client: Client) -> None:
    answer = await client.call_tool("probe", {"model_id": "induction"})
    assert answer.is_error
    assert "A probe takes a task or labelled prompts" in str(answer.content)
