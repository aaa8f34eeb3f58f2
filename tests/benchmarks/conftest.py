"""The model and task that several yardsticks are held against."""

from __future__ import annotations

import pytest

from benchmarks.known_circuits.hand_built import build_known_circuit
from discovery import load_model, load_task
from discovery.backends.base import Backend
from discovery.tasks.task import Task


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backend, Task]:
    place = build_known_circuit("induction").save(tmp_path_factory.mktemp("models") / "induction")
    model = load_model(place, device="cpu")
    return model, load_task(place / "task.jsonl", model, pairs=48)
