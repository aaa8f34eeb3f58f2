"""Does the server answer while a run works?

    python -m benchmarks.performance.responsiveness

A server is started over HTTP in a process of its own. Ten calls are timed while it is idle, then
beside a discovery on a random model of the size of GPT-2 small, and then idle again. The table says
how many times as long each call took beside the run, and the longest wait. A second server without
TCP_NODELAY shows what that option saves for `ping` on a kept connection.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client

from benchmarks.output import Output, format_header, format_row, open_output, print_progress
from benchmarks.random_models.timing_models import random_task, save_small_gpt2
from discovery import load_model
from discovery.backends.base import Backend, Batch

N_PAIRS = 64
N_TOKENS = 20
START_SECONDS = 120  # within which a server listens
RUN_SECONDS = 20  # after which the discovery is at work on batches of its sweeps
COLUMNS = ("call", "idle, median", "beside a run, median", "ratio", "longest beside a run")
PING_COLUMNS = ("server", "ping, median", "ratio")
SLOW_SERVER = """
import socket
from mcp_server.server import http
fast_listen = http.listen
def listen(endpoint):
    endpoint, listening = fast_listen(endpoint)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    return endpoint, listening
http.listen = listen
from mcp_server.server import command
command.listen = listen
from mcp_server.__main__ import main
raise SystemExit(main())
"""


def find_behaviour(model: Backend) -> list[dict[str, Any]]:
    """Return pairs of random tokens that a random model tells apart.

    The answer is the token whose logit falls the most from the clean to the corrupted prompt, and
    the wrong answer is the token whose logit rises the most.
    """
    pairs = []
    for pair in random_task(model, N_PAIRS, N_TOKENS).pairs:
        sides = [list(pair.clean), list(pair.corrupted)]
        tokens = _to_tensor(model, sides)
        last = _to_tensor(model, [N_TOKENS - 1] * 2)
        logits = model.run(Batch(tokens, last)).logits
        assert logits is not None
        fall = logits[0] - logits[1]
        pairs.append(
            {
                "clean": sides[0],
                "corrupted": sides[1],
                "answer": int(fall.argmax()),
                "wrong": int(fall.argmin()),
            }
        )
    return pairs


def _to_tensor(model: Backend, numbers: Any) -> Any:
    import torch

    return torch.tensor(numbers, device=model.device)


@contextmanager
def run_server(folder: Path, *python: str) -> Iterator[str]:
    """Run a server over HTTP in a process of its own, and yield its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["serve", "--http", f"127.0.0.1:{port}", "--models-dir", str(folder)]
    environment = os.environ | {"CIRCUIT_SCOUT_RUNS_DIR": str(folder / "runs")}
    command = [sys.executable, *(python or ("-m", "mcp_server")), *words]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait(30)


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool that must succeed, and return its structured result."""
    result = await client.call_tool(tool, arguments)
    if result.is_error or result.structured_content is None:
        raise RuntimeError(f"{tool}: {result.content}")
    return result.structured_content


def make_calls(client: Client) -> Mapping[str, Callable[[], Awaitable[Any]]]:
    """Return the ten calls by their names."""
    bundled = {"model_id": "bundled"}
    ioi = {**bundled, "task": "ioi", "pairs": 8}
    prompt = "When Anna and John went to the park, John gave a book to"
    wide = [464, 3290, 318, 257]
    return {
        "tools/list": client.list_tools,
        "list_models": lambda: call(client, "list_models"),
        "list_runs": lambda: call(client, "list_runs"),
        "load_model, loaded": lambda: call(client, "load_model", model="bundled"),
        "load_model, load=false": lambda: call(client, "load_model", model="wide", load=False),
        "run_with_cache": lambda: call(client, "run_with_cache", **bundled, prompt=prompt),
        "run_with_cache, the run's model": lambda: call(
            client, "run_with_cache", model_id="wide", prompt=wide
        ),
        "check_task": lambda: call(client, "check_task", **ioi),
        "patch_sweep, 8 pairs": lambda: call(client, "patch_sweep", **ioi, site="resid_pre"),
        "ablate_heads, 8 pairs": lambda: call(client, "ablate_heads", **ioi, nodes=["a0.h0"]),
    }


async def time_calls(client: Client, repetitions: int) -> dict[str, list[float]]:
    """Return the seconds of each call, one repetition of all calls after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in make_calls(client)}
    for _ in range(repetitions):
        for name, make_call in make_calls(client).items():
            began = time.monotonic()
            await make_call()
            seconds[name].append(time.monotonic() - began)
    return seconds


@asynccontextmanager
async def discovery_at_work(client: Client, pairs: list[dict[str, Any]]) -> AsyncIterator[None]:
    """Have a discovery at work on the wide model inside the block."""
    started = await call(client, "discover_circuit", model_id="wide", task=pairs, wait_seconds=0)
    await asyncio.sleep(RUN_SECONDS)
    yield
    status = await call(client, "run_status", run_id=started["run_id"])
    if status["status"] != "running":
        raise RuntimeError(f"The run ended too early: {status}")
    print_progress(status["progress"])
    await call(client, "cancel_run", run_id=started["run_id"])


async def write_calls(url: str, pairs: list[dict[str, Any]], repetitions: int, out: Output) -> None:
    """Time the calls idle, beside a run, and idle again, and write the table."""
    async with Client(url) as client:
        await call(client, "load_model", model="bundled")
        await call(client, "load_model", model="wide")
        await time_calls(client, 1)
        idle = await time_calls(client, repetitions)
        print_progress("idle", idle)
        async with discovery_at_work(client, pairs):
            beside = await time_calls(client, repetitions)
        print_progress("beside", beside)
        later = await time_calls(client, repetitions)
    out.write(format_header(*COLUMNS))
    for name, seconds in beside.items():
        before = statistics.median(idle[name] + later[name])
        median = statistics.median(seconds)
        cells = (f"{before:.3f} s", f"{median:.3f} s", f"{median / before:.1f}×")
        out.write(format_row(name, *cells, f"{max(seconds):.2f} s"))


def time_ping(url: str, repetitions: int) -> float:
    """Return the median seconds of `ping` on a kept connection."""
    headers = {"accept": "application/json, text/event-stream"}
    hello = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "benchmark", "version": "1"},
    }
    seconds = []
    with httpx2.Client(headers=headers, timeout=30) as http:
        answer = http.post(
            url, json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
        )
        http.headers["mcp-session-id"] = answer.headers["mcp-session-id"]
        http.post(url, json={"jsonrpc": "2.0", "method": "notifications/initialized"})
        for number in range(repetitions):
            began = time.monotonic()
            reply = http.post(url, json={"jsonrpc": "2.0", "id": number + 2, "method": "ping"})
            reply.raise_for_status()
            seconds.append(time.monotonic() - began)
    return statistics.median(seconds)


def write_pings(folder: Path, repetitions: int, out: Output) -> None:
    """Time `ping` with and without TCP_NODELAY, in turns, and write the table."""
    with run_server(folder) as fast_url, run_server(folder, "-c", SLOW_SERVER) as slow_url:
        rounds = [
            (time_ping(slow_url, repetitions), time_ping(fast_url, repetitions)) for _ in range(3)
        ]
    slow = statistics.median(pair[0] for pair in rounds)
    fast = statistics.median(pair[1] for pair in rounds)
    out.write("\n" + format_header(*PING_COLUMNS))
    out.write(format_row("without TCP_NODELAY", f"{1000 * slow:.1f} ms", f"{slow / fast:.1f}×"))
    out.write(format_row("as it is", f"{1000 * fast:.1f} ms", "1"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=10, help="of each call")
    arguments = parser.parse_args()
    with open_output() as out:
        wide = save_small_gpt2(out.folder / "wide")
        pairs = find_behaviour(load_model(str(wide)))
        with run_server(out.folder) as url:
            asyncio.run(write_calls(url, pairs, arguments.repetitions, out))
        write_pings(out.folder, 50, out)


if __name__ == "__main__":
    main()
