"""run_with_edits, as a client calls it."""

from __future__ import annotations

import pytest
from mcp import Client

from tests.mcp_server.servers import INDUCTION_TASK, call_tool_error, call_tool_ok

pytestmark = pytest.mark.anyio

EDIT = {"operation": "resample", "site": "head_out", "layer": 1, "head": 1, "source": "corrupted"}


async def test_an_edit_gives_the_number_of_the_sweep(client: Client) -> None:
    """The cell of a noising sweep, as the description of the tool says it."""
    task = {"model_id": "induction", "task": INDUCTION_TASK, "pairs": 16}
    sweep = await call_tool_ok(client, "patch_sweep", **task, site="head_out", direction="noising")
    cell = next(row for row in sweep["top"] if (row["layer"], row["head"]) == (1, 1))
    answer = await client.call_tool("run_with_edits", {**task, "edits": [EDIT]})
    assert not answer.is_error, answer.content
    result = answer.structured_content
    assert result is not None
    assert abs(result["effect"]) > 0.1
    assert result["effect"] == pytest.approx(cell["effect"], abs=1e-3)
    assert result["change"]["mean"] == pytest.approx(
        result["after"]["mean"] - result["before"]["mean"], abs=1e-3
    )
    assert [block.type for block in answer.content] == ["text", "image", "resource_link"]


async def test_a_prompt_and_a_named_prompt(client: Client) -> None:
    result = await call_tool_ok(
        client,
        "run_with_edits",
        model_id="induction",
        prompt=[0, 5, 6, 7, 5],
        prompts={"other": [0, 6, 5, 7, 5]},
        edits=[{**EDIT, "source": "other"}],
        top=2,
    )
    assert (result["n"], result["effect"]) == (1, None)
    assert result["tokens"][0]["before"] != pytest.approx(result["tokens"][0]["after"], abs=1e-3)


async def test_what_is_wrong_is_named(client: Client) -> None:
    call = {"model_id": "induction", "task": INDUCTION_TASK}
    for edits, message in (
        ([{**EDIT, "layer": 9}], "Layer 9 does not exist"),
        ([{**EDIT, "source": "other"}], "'other', which is not known"),
        ("/etc/passwd", "text file"),
    ):
        assert message in await call_tool_error(client, "run_with_edits", **call, edits=edits)
