"""Servers for the tests, ways to connect to them, and calls of their tools."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, Any

import anyio
from mcp import Client, StdioServerParameters
from mcp.types import CallToolResult

from mcp_server.server.server import CircuitScoutServer, build_server
from mcp_server.session import ServerSettings

INDUCTION_TASK = "induction/task.jsonl"
INDUCTION_CIRCUIT = {"a0.h2", "a1.h1"}
ERAS = ("auto", "legacy")  # of the protocol
HELLO = {  # the parameters of `initialize`
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "1"},
}


def server_environment(runs: Path, **more: str) -> dict[str, str]:
    """Return the environment of a server process."""
    return {**os.environ, "CIRCUIT_SCOUT_RUNS_DIR": str(runs), "OMP_NUM_THREADS": "1", **more}


def make_server(models: Path, runs: Path, **more: Any) -> CircuitScoutServer:
    """Return a server in this process."""
    return build_server(ServerSettings(runs_dir=runs, models_dir=models, **more))


@asynccontextmanager
async def connect_over_stdio(
    models: Path, runs: Path, era: str = "auto", *words: str, **more: Any
) -> AsyncIterator[Client]:
    """Connect a client to a server that runs in a process of its own."""
    words = (
        "-m",
        "mcp_server",
        "serve",
        "--models-dir",
        str(models),
        "--runs-dir",
        str(runs),
        *words,
    )
    async with Client(
        StdioServerParameters(
            command=sys.executable, args=list(words), env=server_environment(runs)
        ),
        mode=era,
        **more,
    ) as client:
        yield client


def write_huge_model(directory: Path) -> None:
    """Write the configuration of a model of 5 trillion parameters, which fits nowhere."""
    directory.mkdir()
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 100}
    config |= {"n_embd": 65_536, "n_layer": 100, "n_head": 64, "n_positions": 128}
    (directory / "config.json").write_text(json.dumps(config))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def run_http_server(models: Path, runs: Path, *words: str, **more: str) -> Iterator[str]:
    """Run a server over HTTP in a process of its own, and yield its URL."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mcp_server",
        "serve",
        "--http",
        f"127.0.0.1:{port}",
        "--models-dir",
        str(models),
        "--runs-dir",
        str(runs),
        *words,
    ]
    process = subprocess.Popen(
        command, env=server_environment(runs, **more), stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with {process.returncode}")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait(20)


async def call_tool_ok(client: Client, name: str, /, **arguments: Any) -> dict[str, Any]:
    """Call a tool that must succeed, and return its structured result."""
    result = await client.call_tool(name, arguments)
    assert not result.is_error, text_of(result)
    assert isinstance(result.structured_content, dict)
    text = next(block.text for block in result.content if block.type == "text")
    assert json.loads(text) == result.structured_content
    return result.structured_content


async def call_tool_error(client: Client, name: str, /, **arguments: Any) -> str:
    """Call a tool that must fail, and return the text of the error."""
    result = await client.call_tool(name, arguments)
    assert result.is_error, result.structured_content
    return text_of(result)


def text_of(result: CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if block.type == "text")


async def wait_for_run(client: Client, run_id: str, seconds: float = 200) -> dict[str, Any]:
    """Poll a run until it is not at work, and return its status."""
    with anyio.fail_after(seconds):
        while True:
            state = await call_tool_ok(client, "run_status", run_id=run_id)
            if state["status"] != "running":
                return state
            await anyio.sleep(0.2)


def exchange(stdin: IO[str], stdout: IO[str], *messages: dict[str, Any]) -> list[dict[str, Any]]:
    """Send JSON-RPC messages over stdio, and return the answers to those that have an id."""
    answers = []
    for message in messages:
        stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        stdin.flush()
        while "id" in message:
            answer = json.loads(stdout.readline())
            if answer.get("id") == message["id"]:
                answers.append(answer)
                break
    return answers
