"""A run that is killed (kill -9) again and again ends with the circuit of an undisturbed run.

    python -m tests.robustness.kills --kills 30

Each kill comes at a random moment after the run's folder is there. It prints one line of JSON, and
ends with status 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from discovery.graph import CircuitGraph, Cost
from discovery.store import open_run, run_ids
from tests.mcp_server.servers import server_environment
from tests.robustness.calls import MODELS, TASKS
from tests.robustness.connections import save_models
from tests.robustness.reports import MAX_FAULTS, RobustnessReport, print_report

MODEL = MODELS[0]
START_SECONDS = 300  # for the folder to appear, also on a busy machine
KILLS_OF_A_RUN = 4  # on average, before it may end


@dataclass(kw_only=True)
class KillReport(RobustnessReport):
    """What came of the kills.

    Attributes:
        kills: how many times a process was killed.
        by_stage: how many kills came after each stage.
        runs: how many runs ended after kills.
        run_seconds: how long the undisturbed run took after its folder was there.
    """

    kills: int = 0
    by_stage: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    run_seconds: float = 0.0


class KilledRuns:
    """The commands of the runs in one folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._random = random.Random(seed)
        self.report = KillReport()
        save_models(folder / "models")

    def run(self, n_kills: int) -> KillReport:
        """Kill runs until there were so many kills, and compare each run at its end."""
        start = time.monotonic()
        reference = self._measure_reference()
        while self.report.kills < n_kills and len(self.report.faults) < MAX_FAULTS:
            self._kill_one_run(reference, n_kills, self._folder / f"runs-{self.report.runs}")
        self.report.seconds = time.monotonic() - start
        return self.report

    def _measure_reference(self) -> CircuitGraph:
        runs_dir = self._folder / "reference"
        process = self._start(runs_dir, None)
        _wait_for_run(process, runs_dir)
        start = time.monotonic()
        if process.wait(1200) != 0:
            raise RuntimeError("the undisturbed run failed")
        self.report.run_seconds = time.monotonic() - start
        return open_run(runs_dir, run_ids(runs_dir)[0]).load_circuit()

    def _kill_one_run(self, reference: CircuitGraph, n_kills: int, runs_dir: Path) -> None:
        """Kill one run several times, let it end, and compare its circuit."""
        run_id: str | None = None
        longest = 2 * self.report.run_seconds / KILLS_OF_A_RUN
        while True:
            process = self._start(runs_dir, run_id)
            run_id = _wait_for_run(process, runs_dir)
            if self.report.kills < n_kills:
                try:
                    process.wait(self._random.uniform(0, longest))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    self._note_kill(runs_dir, run_id)
                    continue
            status = process.wait(1200)
            break
        self.report.runs += 1
        if status != 0:
            self.report.faults.append(f"{run_id} ended with status {status} after a kill")
        elif not _is_same_circuit(open_run(runs_dir, run_id).load_circuit(), reference):
            self.report.faults.append(f"{run_id} ended with another circuit after a kill")

    def _note_kill(self, runs_dir: Path, run_id: str) -> None:
        self.report.kills += 1
        events = open_run(runs_dir, run_id).events()
        stage = str(events[-1]["stage"]) if events else "none"
        self.report.by_stage[stage] = self.report.by_stage.get(stage, 0) + 1

    def _start(self, runs_dir: Path, run_id: str | None) -> subprocess.Popen[bytes]:
        models = self._folder / "models"
        words = [str(models / TASKS[MODEL]), "--model", str(models / MODEL), "--pairs", "120"]
        if run_id is not None:
            words = ["--resume", run_id]
        return subprocess.Popen(
            [sys.executable, "-m", "mcp_server", "discover", "-q", *words],
            env=server_environment(runs_dir),
            stdout=subprocess.DEVNULL,
        )


def _wait_for_run(process: subprocess.Popen[bytes], runs_dir: Path) -> str:
    """Return the id of the run in a runs directory, as soon as a process writes to it."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        for run_id in run_ids(runs_dir):
            run = open_run(runs_dir, run_id)
            if run.status == "running" or process.poll() is not None:
                return run_id
        if process.poll() not in (None, 0):
            raise RuntimeError(f"the run ended with status {process.returncode}")
        time.sleep(0.02)
    raise RuntimeError(f"no run has begun after {START_SECONDS} s")


def _is_same_circuit(one: CircuitGraph, other: CircuitGraph) -> bool:
    """Whether two records are equal but for times, ids and cost."""
    no_cost = {"cost": Cost()}
    return one.model_copy(update=no_cost).same_content(other.model_copy(update=no_cost))


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        report = KilledRuns(Path(folder), args.seed).run(args.kills)
    return print_report(report)


if __name__ == "__main__":
    sys.exit(main())
