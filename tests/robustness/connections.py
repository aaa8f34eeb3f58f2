"""Servers in processes of their own, clients of them, and what any answer must be like."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult

from benchmarks.known_circuits.hand_built import build_known_circuit
from tests.mcp_server.servers import server_environment
from tests.robustness.calls import MODELS

START_SECONDS = 300  # for the server to listen, also on a busy machine
ANSWER_SECONDS = 300
MAX_CHARACTERS = 45_000  # of one answer
LEAKS = ("Traceback", 'File "', "Internal error", "root:x:0")


@dataclass(frozen=True, kw_only=True)
class ServerProcess:
    """A server over HTTP.

    Attributes:
        url: where it listens.
        token: what clients must send.
        process: its process.
        log: the file with what it wrote to standard error.
    """

    url: str
    token: str
    process: subprocess.Popen[bytes]
    log: Path


def save_models(folder: Path) -> Path:
    """Write the models directory, and return it."""
    for name in MODELS:
        build_known_circuit(name).save(folder / name)
    return folder


@contextmanager
def run_server(folder: Path) -> Iterator[ServerProcess]:
    """Run a server over HTTP on the models and runs in a folder."""
    token = secrets.token_hex(16)
    words = ["serve", "--http", "127.0.0.1:0", "--models-dir", str(folder / "models")]
    log = folder / "server.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "mcp_server", *words],
            env=server_environment(folder / "runs", CIRCUIT_SCOUT_TOKEN=token),
            stderr=stderr,
        )
    try:
        yield ServerProcess(url=_wait_for_url(process, log), token=token, process=process, log=log)
    finally:
        process.terminate()
        process.wait(60)


def _wait_for_url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if match := re.search(r"Listening at (\S+)", log.read_text()):
            return match[1]
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")


@asynccontextmanager
async def connect(server: ServerProcess) -> AsyncIterator[Client]:
    """Connect a client over HTTP."""
    headers = {"authorization": f"Bearer {server.token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=ANSWER_SECONDS) as http,
        Client(streamable_http_client(server.url, http_client=http)) as client,
    ):
        yield client


@asynccontextmanager
async def connect_over_stdio(folder: Path) -> AsyncIterator[Client]:
    """Connect a client to a server over standard input and output."""
    words = ["-m", "mcp_server", "serve", "--models-dir", str(folder / "models")]
    server = StdioServerParameters(
        command=sys.executable, args=words, env=server_environment(folder / "runs")
    )
    async with Client(server) as client:
        yield client


async def call(client: Client, name: str, arguments: dict[str, Any]) -> tuple[bool, str]:
    """Call a tool, and return whether it succeeded and everything that it answered."""
    with anyio.fail_after(ANSWER_SECONDS):
        result: CallToolResult = await client.call_tool(name, arguments)
    text = "\n".join(block.text for block in result.content if block.type == "text")
    facts = json.dumps(result.structured_content, allow_nan=False, ensure_ascii=False)
    return not result.is_error, f"{text}\n{facts}"


def find_faults(answer: str, given: str, *, may_show_paths: bool) -> list[str]:
    """Return what is wrong with an answer, whatever was called.

    Args:
        answer: everything that was answered.
        given: the arguments, whose own words an answer may repeat.
        may_show_paths: whether the client is on the server's machine.
    """
    faults = [f"it shows {leak!r}" for leak in LEAKS if leak in answer and leak not in given]
    if len(answer) > 2 * MAX_CHARACTERS:
        faults.append(f"it has {len(answer)} characters")
    if not may_show_paths:
        paths = re.findall(r"/[\w.@-]+(?:/[\w.@-]+)+", answer)
        faults += [
            f"it shows the path {path}"
            for path in paths
            if path not in given and Path(path).exists()
        ]
    return faults
