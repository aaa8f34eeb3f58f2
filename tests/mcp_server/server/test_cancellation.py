"""A client that cancels or leaves: measurements stop within a batch, discoveries continue."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import IO, Any

import anyio
import httpx2
import pytest
from mcp import Client

from discovery.store import open_run
from mcp_server.server.server import CircuitScoutServer
from tests.mcp_server.servers import (
    ERAS,
    HELLO,
    INDUCTION_TASK,
    call_tool_ok,
    connect_over_stdio,
    free_port,
    run_http_server,
    server_environment,
    wait_for_run,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    "transport",
    [
        "memory",
        pytest.param("stdio", marks=pytest.mark.slow),
        pytest.param("http", marks=pytest.mark.slow),
    ],
)
async def test_a_cancelled_measurement_frees_the_device(
    transport: str, era: str, server: CircuitScoutServer, models: Path, runs_dir: Path
) -> None:
    connection: AbstractAsyncContextManager[Client]
    if transport == "http":
        with run_http_server(models, runs_dir) as url:
            await cancel(Client(url, mode=era))
        return
    connection = (
        Client(server, mode=era)
        if transport == "memory"
        else connect_over_stdio(models, runs_dir, era)
    )
    await cancel(connection)


async def cancel(connection: AbstractAsyncContextManager[Client]) -> None:
    async with connection as client:
        await call_tool_ok(client, "load_model", model="or_mlp")
        arguments = {"model_id": "or_mlp", "task": "or_mlp/task.jsonl"}
        await call_tool_ok(client, "check_task", **arguments)
        start = time.monotonic()
        await call_tool_ok(
            client, "evaluate_circuit", **arguments, nodes=["a0.h3", "a1.h0"], pairs=240
        )
        whole_seconds = time.monotonic() - start
        with anyio.move_on_after(whole_seconds / 8) as scope:
            await client.call_tool(
                "evaluate_circuit", {**arguments, "nodes": ["a0.h3", "a1.h2"], "pairs": 240}
            )
        assert scope.cancelled_caught
        start = time.monotonic()
        await call_tool_ok(client, "check_task", **arguments)
        assert time.monotonic() - start < max(whole_seconds / 2, 3.0)


@pytest.mark.slow
async def test_a_client_that_closes_its_connection_stops_its_measurement(
    models: Path, runs_dir: Path
) -> None:
    """Also in the older protocol, in which the SDK lets the call run on."""
    arguments = {"model_id": "or_mlp", "task": "or_mlp/task.jsonl"}
    evaluation = {**arguments, "nodes": ["a0.h3", "a1.h0"], "pairs": 240}
    with run_http_server(models, runs_dir) as url:
        async with Client(url) as client:
            await call_tool_ok(client, "load_model", model="or_mlp")
            await call_tool_ok(client, "check_task", **arguments)
            start = time.monotonic()
            await call_tool_ok(client, "evaluate_circuit", **evaluation)
            whole_seconds = time.monotonic() - start
            await abandon_call(url, "evaluate_circuit", evaluation, whole_seconds / 8)
            start = time.monotonic()
            await call_tool_ok(client, "check_task", **arguments)
            assert time.monotonic() - start < max(whole_seconds / 2, 3.0)


async def abandon_call(url: str, tool: str, arguments: dict[str, Any], seconds: float) -> None:
    """Call a tool as an old client does, and close the connection after some seconds."""
    headers = {"accept": "application/json, text/event-stream"}
    hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO}
    ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    call = {
        "jsonrpc": "2.0",
        "id": 2,
        "method": "tools/call",
        "params": {"name": tool, "arguments": arguments},
    }
    async with httpx2.AsyncClient(headers=headers, timeout=30) as http:
        answer = await http.post(url, json=hello)
        session_id = answer.headers["mcp-session-id"]
        http.headers["mcp-session-id"] = session_id
        await http.post(url, json=ready)
        with anyio.move_on_after(seconds) as scope:
            await http.post(url, json=call)
        assert scope.cancelled_caught


@pytest.mark.slow
async def test_over_http_a_run_outlives_its_client(models: Path, runs_dir: Path) -> None:
    with run_http_server(models, runs_dir) as url:
        async with Client(url) as client:
            await call_tool_ok(client, "load_model", model="induction")
            started = await call_tool_ok(
                client,
                "discover_circuit",
                model_id="induction",
                task=INDUCTION_TASK,
                wait_seconds=0,
            )
        async with Client(url, mode="legacy") as other:
            state = await wait_for_run(other, started["run_id"])
            assert (state["status"], state["verdict"]) == ("completed", "verified")
            assert state["stages"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_an_http_server_with_its_runs_closed(
    number: int, models: Path, runs_dir: Path
) -> None:
    port = free_port()
    words = [
        "serve",
        "--http",
        f"127.0.0.1:{port}",
        "--models-dir",
        str(models),
        "--runs-dir",
        str(runs_dir),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "mcp_server", *words],
        env=server_environment(runs_dir),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr as stderr:
        await start_run_and_signal(number, process, stderr, port, runs_dir)


async def start_run_and_signal(
    number: int, process: subprocess.Popen[str], stderr: IO[str], port: int, runs_dir: Path
) -> None:
    """Start a run, and signal the server while it is at work."""
    assert f"http://127.0.0.1:{port}/mcp" in stderr.readline()
    async with Client(f"http://127.0.0.1:{port}/mcp") as client:
        await call_tool_ok(client, "load_model", model="or_mlp")
        started = await call_tool_ok(
            client, "discover_circuit", model_id="or_mlp", task="or_mlp/task.jsonl", wait_seconds=0
        )
    process.send_signal(number)
    assert process.wait(30) == 130
    assert "Traceback" not in stderr.read()
    assert open_run(runs_dir, started["run_id"]).record.status == "interrupted"
