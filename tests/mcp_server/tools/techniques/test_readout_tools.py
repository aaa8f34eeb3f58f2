"""logit_lens and direct_logit_attribution, as a client calls them."""

from __future__ import annotations

import pytest
from mcp import Client

from tests.mcp_server.servers import INDUCTION_TASK, call_tool_ok

pytestmark = pytest.mark.anyio


async def test_the_lens_on_a_task(client: Client) -> None:
    answer = await client.call_tool(
        "logit_lens", {"model_id": "induction", "task": INDUCTION_TASK, "pairs": 16}
    )
    assert not answer.is_error, answer.content
    result = answer.structured_content
    assert result is not None
    assert [row["layer"] for row in result["layers"]] == [0, 1, 2]
    assert result["layers"][-1]["metric"]["low"] > result["layers"][0]["metric"]["high"]
    assert result["answer_layer"] == 2
    assert [block.type for block in answer.content] == ["text", "image", "resource_link"]
    [picture] = (await client.read_resource(result["figure"])).contents
    assert len(picture.blob) > 1000


async def test_the_attribution_of_a_prompt(client: Client) -> None:
    result = await call_tool_ok(
        client,
        "direct_logit_attribution",
        model_id="induction",
        prompt=[0, 5, 6, 7, 5],
        answer=6,
        wrong=7,
        top=3,
    )
    assert (result["answer"], result["wrong"], result["n"]) == ("6", "7", 1)
    assert len(result["parts"]) == 3
    assert result["truncated"] is True
    assert result["sum"]["mean"] == pytest.approx(result["logit_difference"]["mean"], abs=1e-3)
    assert len(result["accumulated"]) == 3


@pytest.mark.parametrize("tool", ["logit_lens", "direct_logit_attribution"])
async def test_a_prompt_or_a_task(client: Client, tool: str) -> None:
    answer = await client.call_tool(tool, {"model_id": "induction"})
    assert answer.is_error
    assert f"{tool} takes one of prompt and task" in answer.content[0].text
