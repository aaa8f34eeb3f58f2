"""A client that cancels or leaves: measurements stop within a batch, discoveries go on."""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio
import pytest
from mcp import Client

from mcp_server.server.build import Scout
from tests.mcp_server.place import ERAS, TASK, call, http_server, over_stdio

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    "transport", ["memory", pytest.param("stdio", marks=pytest.mark.slow), pytest.param("http", marks=pytest.mark.slow)]
)
async def test_a_cancelled_measurement_frees_the_device(transport: str, era: str, server: Scout, models: Path, runs_dir: Path) -> None:
    connection: AbstractAsyncContextManager[Client]
    if transport == "http":
        with http_server(models, runs_dir) as url:
            await cancel(Client(url, mode=era))
        return
    connection = Client(server, mode=era) if transport == "memory" else over_stdio(models, runs_dir, era)
    await cancel(connection)


async def cancel(connection: AbstractAsyncContextManager[Client]) -> None:
    async with connection as client:
        await call(client, "load_model", model="or_mlp")
        given = {"model_id": "or_mlp", "task": "or_mlp/task.jsonl"}
        await call(client, "check_task", **given)
        began = time.monotonic()
        await call(client, "evaluate_circuit", **given, nodes=["a0.h3", "a1.h0"], pairs=240)
        whole = time.monotonic() - began
        with anyio.move_on_after(whole / 8) as scope:
            await client.call_tool("evaluate_circuit", {**given, "nodes": ["a0.h3", "a1.h2"], "pairs": 240})
        assert scope.cancelled_caught
        began = time.monotonic()
        await call(client, "check_task", **given)
        assert time.monotonic() - began < max(whole / 2, 3.0)


@pytest.mark.slow
async def test_over_http_a_run_outlives_its_client(models: Path, runs_dir: Path) -> None:
    with http_server(models, runs_dir) as url:
        async with Client(url) as client:
            await call(client, "load_model", model="induction")
            begun = await call(client, "discover_circuit", model_id="induction", task=TASK, wait_seconds=0)
        async with Client(url, mode="legacy") as other:
            with anyio.fail_after(200):
                while (state := await call(other, "run_status", run_id=begun["run_id"]))["status"] == "running":
                    await anyio.sleep(0.5)
            assert (state["status"], state["verdict"]) == ("completed", "verified")
            assert state["stages"]
