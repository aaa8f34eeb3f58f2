"""Short versions of the scripts in this folder; `benchmarks/RESULTS.md` has the full ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.robustness import fuzz, kills, load, soak
from tests.robustness.calls import CallMaker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_spoilt_calls_are_answered(transport: fuzz.Transport, tmp_path: Path) -> None:
    report = await fuzz.run(transport, 150, seed=1, folder=tmp_path)
    assert report.faults == []
    assert report.calls == 150


@pytest.mark.anyio
async def test_clients_at_once_are_served(tmp_path: Path) -> None:
    report = await load.run(10, 4, seed=1, folder=tmp_path)
    assert report.faults == []
    assert report.calls == 40


def test_killed_runs_end_with_the_same_circuit(tmp_path: Path) -> None:
    report = kills.KilledRuns(tmp_path, seed=1).run(3)
    assert report.faults == []
    assert report.kills == 3
    assert report.runs >= 1


@pytest.mark.anyio
async def test_calls_beside_a_run(tmp_path: Path) -> None:
    report = await soak.run(0.5, seed=1, folder=tmp_path)
    assert report.faults == []
    assert report.calls
    assert report.runs_ended == report.runs >= 1


def test_the_calls_are_those_of_the_seed() -> None:
    tools = [("check_task", {"properties": {"model_id": {}, "task": {}}, "required": ["task"]})]
    first, again, other = (CallMaker(tools=tools, seed=seed) for seed in (3, 3, 4))
    calls = [[str(maker.draw()) for _ in range(50)] for maker in (first, again, other)]
    assert calls[0] == calls[1] != calls[2]
