"""What the tests of the command line share: a stand-in for the agent, a model directory, runs that are there already."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.known_circuits.hand_built import build_known_circuit
from discovery import cli
from discovery.graph import CircuitGraph
from discovery.store import ModelSource, create_run
from tests.discovery.graph.example import ioi_circuit


@dataclass(frozen=True)
class CommandResult:
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def scout(capfd: pytest.CaptureFixture[str], runs_dir: Path) -> Callable[..., CommandResult]:
    """Runs one command in this process."""

    def call(*words: str) -> CommandResult:
        capfd.readouterr()
        status = cli.main(words)
        return CommandResult(status, *capfd.readouterr())

    return call


class StubTask(tuple[str, int]):
    """A task as the command sees it: what it was opened with, and how many pairs are held out."""

    heldout = range(48)

    def __new__(cls, *parts: object) -> StubTask:
        return super().__new__(cls, parts)


@dataclass
class StubAgent:
    """What the stand-in was asked, and what it shall do."""

    folder: Path
    asked: list[tuple[str, Any, Mapping[str, Any]]] = field(default_factory=list)
    fault: BaseException | None = None

    def answer(self, name: str, about: Any, options: Mapping[str, Any]) -> Any:
        self.asked.append((name, about, options))
        if tell := options.get("on_event"):
            tell(
                {
                    "stage": "heads",
                    "kind": "stage",
                    "measured": {},
                    "concluded": "two heads",
                    "why": "they move the metric",
                }
            )
            tell(
                {
                    "stage": "mend",
                    "kind": "decision",
                    "measured": {},
                    "concluded": "added L1H1",
                    "why": "completeness",
                }
            )
        if report := options.get("progress"):
            report(1.0, 10.0, "heads")
        if self.fault is not None:
            raise self.fault
        circuit = ioi_circuit(run_id=self.folder.name)
        return types.SimpleNamespace(run_id=self.folder.name, path=self.folder, circuit=circuit)

    @property
    def options(self) -> Mapping[str, Any]:
        return self.asked[-1][2]


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StubAgent:
    """`discovery.agent`, and the loading of models and tasks, replaced by what only remembers."""
    made = StubAgent(tmp_path / "runs" / "ioi-bundled-20261120-153012-a1b2")
    stage = {"heads": 1000.0, "validate": 234.5}
    estimate = types.SimpleNamespace(
        forward_equivalents=1234.5,
        stages=stage,
        note="a guess",
        to_json=lambda: {"forward_equivalents": 1234.5, "stages": stage},
    )
    fake: Any = types.ModuleType("discovery.agent")
    fake.discover = lambda model, task, **options: made.answer("discover", (model, task), options)
    fake.resume = lambda run_id, **options: made.answer("resume", run_id, options)

    def estimated(model: Any, task: Any, **options: Any) -> Any:
        made.asked.append(("estimate", (model, task), options))
        return estimate

    fake.estimate = estimated
    monkeypatch.setitem(sys.modules, "discovery.agent", fake)
    from discovery.cli.commands import discover

    monkeypatch.setattr(discover, "load_requested_model", lambda load, console: ("model", load))
    monkeypatch.setattr(
        discover, "load_requested_task", lambda load, model, seed, console: StubTask("task", seed)
    )
    return made


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hand-built induction model, with its task.jsonl."""
    return build_known_circuit("induction").save(tmp_path_factory.mktemp("models") / "induction")


@pytest.fixture
def finished(runs_dir: Path) -> str:
    """The id of a completed run."""
    with create_run(runs_dir, "ioi", ModelSource(name="bundled"), {"seed": 0}) as run:
        run.save_circuit(
            CircuitGraph.model_validate({**ioi_circuit().model_dump(), "run_id": run.id})
        )
        run.save_report("<!DOCTYPE html>")
        run.update(status="completed")
    return run.id


@pytest.fixture
def unfinished(runs_dir: Path) -> str:
    """The id of a run that was interrupted after its first stage."""
    with create_run(runs_dir, "induction", ModelSource(name="bundled"), {"seed": 0}) as run:
        run.append_event(
            {"stage": "check", "concluded": "the model does the task", "why": "accuracy 0.99"}
        )
        run.update(status="interrupted")
    return run.id
