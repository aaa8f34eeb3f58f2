"""Many clients at once over HTTP: no call fails, and none waits much longer than the others.

    python -m tests.robustness.load --clients 50 --calls 20

It prints one line of JSON, and ends with status 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from tests.robustness.calls import TASKS
from tests.robustness.connections import ServerProcess, call, connect, run_server, save_models
from tests.robustness.reports import RobustnessReport, print_report

MODEL = "induction"
TASK = {"model_id": MODEL, "task": TASKS[MODEL], "pairs": 4}
CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("patch_sweep", {**TASK, "site": "head_out"}),
    ("patch_sweep", {**TASK, "site": "resid_pre"}),
    ("check_task", TASK),
    ("ablate_heads", {**TASK, "nodes": ["a0.h2"]}),
    ("run_with_cache", {"model_id": MODEL, "prompt": [0, 1, 2, 3]}),
)
MAX_WAIT_RATIO = 3.0  # of the longest call to the median, with 50 clients


@dataclass(kw_only=True)
class LoadReport(RobustnessReport):
    """How long the calls took, in seconds.

    Attributes:
        clients: how many clients called at the same time.
        calls: how many calls all of them made.
        median: the median time of a call, its wait for the device included.
        longest: the longest time of a call.
        ratio: the longest time as a multiple of the median.
    """

    clients: int
    calls: int = 0
    median: float = 0.0
    longest: float = 0.0
    ratio: float = 0.0


async def run(n_clients: int, n_calls: int, seed: int, folder: Path) -> LoadReport:
    """Start a server, and let the clients call it."""
    save_models(folder / "models")
    report = LoadReport(clients=n_clients)
    times: list[float] = []
    with run_server(folder) as server:
        async with connect(server) as client:  # what is loaded first is no wait
            await call(client, "load_model", {"model": MODEL})
            for name, arguments in CALLS:
                await call(client, name, arguments)
        start = time.monotonic()
        async with anyio.create_task_group() as group:
            for number in range(n_clients):
                group.start_soon(_call_often, server, n_calls, seed + number, times, report.faults)
        report.seconds = time.monotonic() - start
    report.calls = len(times)
    report.median = statistics.median(times)
    report.longest = max(times)
    report.ratio = report.longest / report.median
    if report.calls != n_clients * n_calls:
        report.faults.append(f"{report.calls} of {n_clients * n_calls} calls were answered")
    if n_clients >= 50 and report.ratio > MAX_WAIT_RATIO:
        report.faults.append(f"the longest wait is {report.ratio:.1f} times the median")
    return report


async def _call_often(
    server: ServerProcess, n_calls: int, seed: int, times: list[float], faults: list[str]
) -> None:
    choose = random.Random(seed)
    async with connect(server) as client:
        for _ in range(n_calls):
            name, arguments = choose.choice(CALLS)
            start = time.monotonic()
            succeeded, answer = await call(client, name, arguments)
            times.append(time.monotonic() - start)
            if not succeeded:
                faults.append(f"{name}: {answer[:300]}")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        report = anyio.run(run, args.clients, args.calls, args.seed, Path(folder))
    return print_report(report)


if __name__ == "__main__":
    sys.exit(main())
