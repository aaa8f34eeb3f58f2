"""The same conversation in memory, over stdio and over HTTP, in both eras of the protocol."""

from __future__ import annotations

import base64
import json
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp.types import INVALID_PARAMS, PromptReference, ResourceTemplateReference

from mcp_server.server.server import CircuitScoutServer
from tests.mcp_server.servers import (
    ERAS,
    INDUCTION_TASK,
    call_tool_error,
    call_tool_ok,
    connect_over_stdio,
    make_server,
    run_http_server,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("transport", ["memory", "stdio", "http"])
async def test_a_conversation(
    transport: str, era: str, server: CircuitScoutServer, models: Path, shared_runs: Path
) -> None:
    with ExitStack() as stack:
        connection: AbstractAsyncContextManager[Client]
        if transport == "memory":
            connection = Client(server, mode=era)
        elif transport == "stdio":
            connection = connect_over_stdio(models, shared_runs, era)
        else:
            connection = Client(stack.enter_context(run_http_server(models, shared_runs)), mode=era)
        async with connection as client:
            await converse(client)


async def converse(client: Client) -> None:
    names = [tool.name for tool in (await client.list_tools()).tools]
    assert names == [tool.name for tool in (await client.list_tools()).tools]
    assert {"load_model", "patch_sweep", "discover_circuit"} <= set(names)

    loaded = await call_tool_ok(client, "load_model", model="induction")
    assert (loaded["model_id"], loaded["n_layers"]) == ("induction", 2)
    assert (await call_tool_ok(client, "load_model", model="induction"))["already_loaded"]

    await sweep_with_progress(client)
    await check_errors(client)

    prompt = await client.get_prompt("find_circuit", {"behaviour": "ioi"})
    assert "check_task" in prompt.messages[0].content.text
    tasks = await client.complete(
        PromptReference(name="validate_claim"), {"name": "task", "value": "i"}
    )
    assert tasks.completion.values[:2] == ["ioi", "induction"]
    skills = await client.complete(
        ResourceTemplateReference(uri="scout://skills/{name}"), {"name": "name", "value": ""}
    )
    assert "find-circuit" in skills.completion.values


async def sweep_with_progress(client: Client) -> None:
    reported: list[float] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        reported.append(done)

    arguments = {
        "model_id": "induction",
        "task": INDUCTION_TASK,
        "site": "head_out",
        "direction": "noising",
    }
    sweep = await client.call_tool("patch_sweep", arguments, progress_callback=progress)
    facts = sweep.structured_content
    assert facts is not None
    assert {facts["top"][0]["node"], facts["top"][1]["node"]} == {"a0.h2", "a1.h1"}
    assert reported == sorted(reported)
    assert [block.type for block in sweep.content] == [
        "text",
        "image",
        "resource_link",
        "resource_link",
    ]

    [grid] = (await client.read_resource(facts["values"])).contents
    assert json.loads(grid.text)["axes"] == ["layer", "head"]
    [picture] = (await client.read_resource(facts["figure"])).contents
    assert base64.b64decode(picture.blob).startswith(b"\x89PNG")


async def check_errors(client: Client) -> None:
    assert "Did you mean 'site'" in await call_tool_error(
        client, "patch_sweep", model_id="induction", task=INDUCTION_TASK, sitee="q"
    )
    assert 'load_model(model="nobody")' in await call_tool_error(
        client, "check_task", model_id="nobody", task="ioi"
    )
    with pytest.raises(MCPError, match="There is no run"):
        await client.read_resource("scout://runs/nothing/circuit.json")


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        (
            "nothing",
            {},
            "no prompt 'nothing'.*find_circuit, what_does_this_head_do, validate_claim",
        ),
        (
            "find_circuit",
            {},
            "'behaviour' is missing.*takes: behaviour, model; required: behaviour",
        ),
        (
            "find_circuit",
            {"behaviour": "ioi", "modle": "bundled"},
            "no argument 'modle'.*takes: behaviour, model",
        ),
    ],
)
async def test_a_prompt_that_cannot_be_had(
    era: str, name: str, arguments: dict[str, str], expected: str, server: CircuitScoutServer
) -> None:
    async with Client(server, mode=era) as client:
        with pytest.raises(MCPError, match=expected) as error:
            await client.get_prompt(name, arguments)
    assert error.value.code == INVALID_PARAMS


async def test_what_is_switched_off_is_said(models: Path, tmp_path: Path) -> None:
    async with Client(
        make_server(models, tmp_path, read_only=True, toolsets=("circuits",))
    ) as client:
        assert "without check_task" in (client.instructions or "")
        prompt = await client.get_prompt("find_circuit", {"behaviour": "ioi"})
        assert (
            "discover_circuit"
            in str(prompt.messages[0].content).partition("This server was started without")[2]
        )
        message = await call_tool_error(client, "discover_circuit", run_id="x")
        assert "discover_circuit is switched off here" in message
        assert "without --read-only and with --toolsets all" in message
    async with Client(make_server(models, tmp_path)) as client:
        assert "started without" not in (client.instructions or "")
