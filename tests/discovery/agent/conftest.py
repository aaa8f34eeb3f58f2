"""One finished run of a small known model, which the tests of the agent share."""

from __future__ import annotations

import pytest

from benchmarks.known_circuits.hand_built import build_known_circuit
from discovery import discover, load_model, load_task
from discovery.agent import DiscoveryResult
from discovery.backends.base import Backend
from discovery.tasks import Task

PAIRS = 120


@pytest.fixture(scope="session")
def model_and_task(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backend, Task]:
    """The hand-built induction model, and its task."""
    folder = build_known_circuit("induction").save(tmp_path_factory.mktemp("model"))
    model = load_model(folder)
    return model, load_task(folder / "task.jsonl", model, pairs=PAIRS)


@pytest.fixture(scope="session")
def finished_run(
    model_and_task: tuple[Backend, Task], tmp_path_factory: pytest.TempPathFactory
) -> DiscoveryResult:
    """A discovery of its circuit; a test that changes its folder restores it."""
    model, task = model_and_task
    return discover(model, task, runs_dir=tmp_path_factory.mktemp("runs"))
