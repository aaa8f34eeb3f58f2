"""The model and task on which several benchmarks are tested."""

from __future__ import annotations

import pytest

from benchmarks.known_circuits.hand_built import build_known_circuit
from discovery.backends.base import Backend
from discovery.tasks.task import Task


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backend, Task]:
    directory = tmp_path_factory.mktemp("models") / "induction"
    return build_known_circuit("induction").load(directory, pairs=48, device="cpu")
