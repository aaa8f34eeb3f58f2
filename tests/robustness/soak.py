"""Minutes of mixed calls beside a discovery: no fault, no growing memory, and the run ends.

    python -m tests.robustness.soak --minutes 15

A run of the bundled task ioi is at work all the time: when one has ended, the next one begins. It
prints one line of JSON, and ends with status 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import psutil
from mcp import Client

from tests.robustness.calls import CallMaker
from tests.robustness.connections import call, connect, find_faults, run_server, save_models
from tests.robustness.fuzz import load_models
from tests.robustness.reports import MAX_FAULTS, RobustnessReport, print_report

RUN = {"model_id": "bundled", "task": "ioi", "wait_seconds": 0}
WARM_UP_SHARE = 0.3  # of the time, after which memory must not grow
MAX_GROWTH_MB = 300.0
HALF_TIME = 0.65  # after the warm-up, where memory is compared


@dataclass(kw_only=True)
class SoakReport(RobustnessReport):
    """What came of the calls.

    Attributes:
        minutes: how long calls were made.
        calls: how many calls were made.
        succeeded: how many of them did not end in an error.
        runs: how many runs were started.
        runs_ended: how many of them were completed by the end.
        median: the median time of a call, in seconds.
        longest: the longest time of a call, in seconds.
        memory_after_warm_up: the largest resident memory between 30% and 65% of the time, in MB.
        memory_at_end: the largest resident memory after that, in MB.
    """

    minutes: float
    calls: int = 0
    succeeded: int = 0
    runs: int = 0
    runs_ended: int = 0
    median: float = 0.0
    longest: float = 0.0
    memory_after_warm_up: float = 0.0
    memory_at_end: float = 0.0


class Soak:
    """One client that keeps a run at work and calls everything else beside it."""

    def __init__(self, client: Client, process: psutil.Process, report: SoakReport) -> None:
        self._client = client
        self._process = process
        self._report = report
        self._times: list[float] = []
        self._memory: list[tuple[float, float]] = []  # share of the time, MB
        self._run_id: str | None = None

    async def run(self, seed: int) -> None:
        """Call until the minutes are over, and wait for the last run."""
        tools = [(tool.name, tool.input_schema) for tool in (await self._client.list_tools()).tools]
        maker = CallMaker(tools=tools, seed=seed)
        await load_models(self._client)
        start = time.monotonic()
        seconds = 60 * self._report.minutes
        while (passed := time.monotonic() - start) < seconds:
            if len(self._report.faults) >= MAX_FAULTS:
                break
            if self._report.calls % 50 == 0:
                await self._keep_a_run_at_work()
                maker.run_ids[:] = [self._run_id or "nobody"]
            await self._make_call(*maker.draw())
            self._memory.append((passed / seconds, self._process.memory_info().rss / 1e6))
        await self._wait_for_last_run()
        self._report.seconds = time.monotonic() - start
        self._summarise()

    async def _make_call(self, name: str, arguments: dict[str, Any]) -> None:
        if name == "cancel_run":  # the run beside the calls must go on
            arguments["run_id"] = "nobody"
        began = time.monotonic()
        succeeded, answer = await call(self._client, name, arguments)
        self._times.append(time.monotonic() - began)
        self._report.calls += 1
        self._report.succeeded += succeeded
        faults = find_faults(answer, str(arguments), may_show_paths=False)
        self._report.faults += [f"{name} {str(arguments)[:300]}: {fault}" for fault in faults]
        if name == "unload_model" and succeeded:
            await load_models(self._client)

    async def _keep_a_run_at_work(self) -> None:
        if self._run_id is not None:
            status = await self._ask_status()
            if status == "running":
                return
            self._note_end(status)
        succeeded, answer = await call(self._client, "load_model", {"model": "bundled"})
        if succeeded:
            succeeded, answer = await call(self._client, "discover_circuit", dict(RUN))
        if not succeeded:
            self._report.faults.append(f"no run could be started: {answer[:300]}")
            return
        self._run_id = str(json.loads(answer.splitlines()[-1])["run_id"])
        self._report.runs += 1

    async def _ask_status(self) -> str:
        _, answer = await call(self._client, "run_status", {"run_id": self._run_id})
        return str(json.loads(answer.splitlines()[-1])["status"])

    def _note_end(self, status: str) -> None:
        if status == "completed":
            self._report.runs_ended += 1
        else:
            self._report.faults.append(f"the run {self._run_id} is {status}")

    async def _wait_for_last_run(self) -> None:
        with anyio.fail_after(1800):
            while (status := await self._ask_status()) == "running":
                await anyio.sleep(1)
        self._note_end(status)

    def _summarise(self) -> None:
        report = self._report
        report.median = statistics.median(self._times)
        report.longest = max(self._times)
        early = [mb for share, mb in self._memory if WARM_UP_SHARE <= share < HALF_TIME]
        late = [mb for share, mb in self._memory if share >= HALF_TIME]
        report.memory_after_warm_up = max(early, default=0.0)
        report.memory_at_end = max(late, default=0.0)
        if early and report.memory_at_end - report.memory_after_warm_up > MAX_GROWTH_MB:
            report.faults.append("the server's memory grows")


async def run(minutes: float, seed: int, folder: Path) -> SoakReport:
    """Start a server, and call it beside runs."""
    save_models(folder / "models")
    report = SoakReport(minutes=minutes)
    with run_server(folder) as server:
        async with connect(server) as client:
            await Soak(client, psutil.Process(server.process.pid), report).run(seed)
        log = server.log.read_text()
    report.faults += [line for line in log.splitlines() if "bug " in line]
    return report


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        report = anyio.run(run, args.minutes, args.seed, Path(folder))
    return print_report(report)


if __name__ == "__main__":
    sys.exit(main())
