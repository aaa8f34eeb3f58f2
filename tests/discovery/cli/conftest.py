"""Fixtures for the tests of the command line: a stand-in for the agent, a model, and runs."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.known_circuits.hand_built import build_known_circuit
from discovery import cli
from discovery.graph import CircuitGraph
from discovery.store import ModelSource, create_run
from tests.discovery.cli.stand_ins import CommandResult, StubAgent, StubTask
from tests.discovery.graph.example import ioi_circuit


@pytest.fixture
def scout(capfd: pytest.CaptureFixture[str], runs_dir: Path) -> Callable[..., CommandResult]:
    """A function that runs one command in this process."""

    def run(*words: str) -> CommandResult:
        capfd.readouterr()
        status = cli.main(words)
        return CommandResult(status, *capfd.readouterr())

    return run


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StubAgent:
    """A stand-in for `discovery.agent`, and for the loading of models and tasks."""
    stub = StubAgent(tmp_path / "runs" / "ioi-bundled-20261120-153012-a1b2")
    module: Any = types.ModuleType("discovery.agent")
    module.discover = lambda model, task, **options: stub.answer("discover", (model, task), options)
    module.resume = lambda run_id, **options: stub.answer("resume", run_id, options)
    module.estimate_cost = stub.estimate_cost
    monkeypatch.setitem(sys.modules, "discovery.agent", module)
    from discovery.cli.commands import discover

    monkeypatch.setattr(discover, "load_requested_model", lambda load, console: ("model", load))
    monkeypatch.setattr(
        discover, "load_requested_task", lambda load, model, seed, console: StubTask("task", seed)
    )
    return stub


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the hand-built induction model, with its task.jsonl."""
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
