"""Thousands of seeded calls to one server: each is answered, and nothing crashes or leaks.

    python -m tests.robustness.fuzz --transport stdio --calls 10000
    python -m tests.robustness.fuzz --transport http --calls 10000

It prints one line of JSON, and ends with status 1 if there was a fault. The calls are those of a
seed, except for the ids of runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import anyio
from mcp import Client

from tests.robustness.calls import MODELS, TASKS, CallMaker
from tests.robustness.connections import (
    call,
    connect,
    connect_over_stdio,
    find_faults,
    run_server,
    save_models,
)
from tests.robustness.reports import MAX_FAULTS, RobustnessReport, print_report

Transport = Literal["stdio", "http"]
MIN_SUCCESS_SHARE = 0.3  # a call that is refused at once tests little


@dataclass(kw_only=True)
class FuzzReport(RobustnessReport):
    """What came of the calls.

    Attributes:
        transport: how the server was called.
        calls: how many calls were made.
        succeeded: how many of them did not end in an error.
        loads: how often a model was loaded again, after a call had unloaded it.
        longest: the longest time that a call took, in seconds.
        by_tool: how many calls of each tool succeeded.
    """

    transport: Transport
    calls: int = 0
    succeeded: int = 0
    loads: int = 0
    longest: float = 0.0
    by_tool: dict[str, int] = field(default_factory=dict)

    def check(self) -> None:
        """Note as a fault if too few calls succeeded."""
        if self.succeeded < MIN_SUCCESS_SHARE * self.calls:
            self.faults.append(f"only {self.succeeded} of {self.calls} calls succeeded")


async def fuzz(client: Client, report: FuzzReport, n_calls: int, seed: int) -> None:
    """Make the calls one after the other, and note what came of them."""
    tools = [(tool.name, tool.input_schema) for tool in (await client.list_tools()).tools]
    await load_models(client)
    maker = CallMaker(tools=tools, seed=seed, run_ids=[await make_run(client)])
    start = time.monotonic()
    while report.calls < n_calls and len(report.faults) < MAX_FAULTS:
        name, arguments = maker.draw()
        began = time.monotonic()
        succeeded, answer = await call(client, name, arguments)
        report.longest = max(report.longest, time.monotonic() - began)
        report.calls += 1
        report.succeeded += succeeded
        report.by_tool[name] = report.by_tool.get(name, 0) + succeeded
        faults = find_faults(answer, str(arguments), may_show_paths=report.transport == "stdio")
        report.faults += [f"{name} {str(arguments)[:500]}: {fault}" for fault in faults]
        if name == "unload_model" and succeeded:
            await load_models(client)
            report.loads += 1
    await load_models(client)  # it still answers
    report.seconds = time.monotonic() - start
    report.check()


async def make_run(client: Client) -> str:
    """Start a run, which the calls can name, and return its id."""
    arguments = {"model_id": MODELS[0], "task": TASKS[MODELS[0]], "wait_seconds": 0}
    succeeded, answer = await call(client, "discover_circuit", arguments)
    if not succeeded:
        raise RuntimeError(f"no run can be started: {answer[:500]}")
    return str(json.loads(answer.splitlines()[-1])["run_id"])


async def load_models(client: Client) -> None:
    for model in MODELS:
        succeeded, answer = await call(client, "load_model", {"model": model})
        if not succeeded:
            raise RuntimeError(f"{model} cannot be loaded: {answer[:500]}")


async def run(transport: Transport, n_calls: int, seed: int, folder: Path) -> FuzzReport:
    """Start a server on the models in a folder, and fuzz it."""
    save_models(folder / "models")
    report = FuzzReport(transport=transport)
    if transport == "stdio":
        async with connect_over_stdio(folder) as client:
            await fuzz(client, report, n_calls, seed)
        return report
    with run_server(folder) as server:
        async with connect(server) as client:
            await fuzz(client, report, n_calls, seed)
        log = server.log.read_text()
    report.faults += [line for line in log.splitlines() if "bug " in line]
    return report


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transport", choices=("stdio", "http"), required=True)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        report = anyio.run(run, args.transport, args.calls, args.seed, Path(folder))
    return print_report(report)


if __name__ == "__main__":
    sys.exit(main())
