"""Calls that no schema foresaw: nothing crashes, hangs or leaks, and the server still answers.

Arguments are drawn from each tool's own schema and then spoilt: wrong types, huge numbers, NaN, strange text, paths that lead out,
handles that nobody gave. CIRCUIT_SCOUT_FUZZ says how many calls.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp.types import Tool

from mcp_server.server.build import Scout
from tests.mcp_server.place import TASK, call, make

pytestmark = pytest.mark.anyio

HOSTILE: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**31,
    2**63,
    10**400,
    0.5,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    " ",
    "\0",
    "x" * 50_000,
    "\ud83d\ude00" * 100,
    "../../../etc/passwd",
    "/etc/passwd",
    "~/.ssh/id_rsa",
    "file:///etc/passwd",
    "%2e%2e%2f",
    "scout://runs/../x",
    "CON",
    "a9.h6",
    "L0H0",
    "m0",
    "${HOME}",
    "$(id)",
    "'; DROP TABLE runs; --",
    "<script>",
    "nan",
    "null",
    "[]",
    "{}",
    '[{"clean": "a"}]',
    [],
    {},
    [[]],
    [None],
    [{}],
    ["a0.h0"] * 3000,
    list(range(9000)),
    {"a": {"b": {"c": []}}},
    [{"clean": [0, 1], "corrupted": [0, 2], "answer": 1, "wrong": 2}],
    [{"clean": "x", "corrupted": "y", "answer": "z", "wrong": "w", "labels": {"k": 10**9}}],
    [{"clean": [10**12], "corrupted": [-1], "answer": [], "wrong": {}}],
]
SAFE = {
    "model_id": "induction",
    "task": TASK,
    "nodes": ["a0.h2"],
    "prompt": [0, 1, 2],
    "model": "induction",
    "run_id": "nobody",
    "pairs": 2,
    "wait_seconds": 0,
}
LEAKS = ("Traceback", "site-packages", "root:x:0", 'File "')


@pytest.fixture
async def fuzzed(models: Path, runs_dir: Path) -> AsyncIterator[tuple[Scout, Client]]:
    server = make(models, runs_dir, images="omit")
    async with Client(server) as client:
        await call(client, "load_model", model="induction")
        yield server, client
    server.session.close(20)


def spoilt(tool: Tool, rng: random.Random) -> dict[str, Any]:
    """Arguments of which some are right and some are anything but."""
    fields = list(tool.input_schema["properties"])
    given = {name: SAFE[name] for name in fields if name in SAFE and rng.random() < 0.8}
    for name in rng.sample(fields, min(len(fields), rng.choice((0, 1, 1, 2)))):
        given[name] = rng.choice(HOSTILE)
    if rng.random() < 0.1:
        given[rng.choice(["haed", "", "__class__", "self", "ctx", "call", "asked", "x" * 200])] = rng.choice(HOSTILE)
    return given


async def fuzz(client: Client, runs: Path, count: int, seed: int) -> int:
    tools = [tool for tool in (await client.list_tools()).tools if tool.name != "unload_model"]
    rng, failed = random.Random(seed), 0
    for number in range(count):
        tool = rng.choice(tools)
        arguments = spoilt(tool, rng)
        if tool.name == "load_model" and isinstance(arguments.get("model"), str) and arguments["model"] != "induction":
            arguments["model"] = arguments["model"] if "/" in arguments["model"] else "induction"  # no name is looked up at the hub
        if tool.name == "discover_circuit" and number % 20:
            arguments["budget"] = -1  # only now and then is one begun
        with anyio.fail_after(60):
            result = await client.call_tool(tool.name, arguments)
        text = "\n".join(block.text for block in result.content if block.type == "text")
        assert len(text) <= 45_000, (tool.name, arguments)
        told = text if result.is_error else ""
        assert "Internal error" not in told, (tool.name, str(arguments)[:500], told)
        assert not any(leak in told for leak in (*LEAKS, str(runs), str(Path.home()) + "/")), (tool.name, str(arguments)[:500], told[:1000])
        if not result.is_error:
            json.dumps(result.structured_content, allow_nan=False)
        failed += bool(result.is_error)
    return failed


async def test_spoilt_calls(fuzzed: tuple[Scout, Client], runs_dir: Path) -> None:
    _, client = fuzzed
    count = int(os.environ.get("CIRCUIT_SCOUT_FUZZ", "300"))
    failed = await fuzz(client, runs_dir, count, seed=0)
    assert count * 0.2 < failed < count
    assert (await call(client, "check_task", model_id="induction", task=TASK))["behaviour"]


@pytest.mark.slow
@pytest.mark.timeout(3000)
async def test_ten_thousand_spoilt_calls(fuzzed: tuple[Scout, Client], runs_dir: Path) -> None:
    _, client = fuzzed
    await fuzz(client, runs_dir, 10_000, seed=1)
    assert (await call(client, "check_task", model_id="induction", task=TASK))["behaviour"]


@pytest.mark.parametrize(
    "uri",
    [
        "scout://runs/../../etc/passwd",
        "scout://runs/x/figures/..%2f..%2frun.json",
        "scout://results/%00/grid.json",
        "scout://skills/..%2f..%2fpyproject",
        "scout://tasks/" + "x" * 5000,
        "file:///etc/passwd",
    ],
)
async def test_no_resource_leads_out(client: Client, uri: str) -> None:
    with pytest.raises(MCPError) as fault:
        await client.read_resource(uri)
    assert not any(leak in str(fault.value) for leak in LEAKS)
