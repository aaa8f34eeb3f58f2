"""A run that gives way to calls on its own model computes the same numbers as one that is alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from benchmarks.records import compare_runs
from discovery.store import open_run
from tests.mcp_server.servers import INDUCTION_TASK, call_tool_ok, make_server, wait_for_run

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MODEL = {"model_id": "induction"}
TASK = {**MODEL, "task": INDUCTION_TASK}
CALLS: list[tuple[str, dict[str, Any]]] = [  # on the run's own model, and the load of another one
    ("check_task", {**TASK, "pairs": 8}),
    ("patch_sweep", {**TASK, "pairs": 8, "site": "resid_pre"}),
    ("patch_sweep", {**TASK, "pairs": 8, "site": "q", "screen": True}),
    ("ablate_heads", {**TASK, "pairs": 8, "nodes": ["a0.h2"], "ablation": "mean"}),
    ("run_with_cache", {**MODEL, "prompt": [1, 2, 3], "sites": ["z", "pattern"]}),
    ("load_model", {"model": "bundled", "dtype": "bfloat16"}),
    ("run_with_cache", {**MODEL, "prompt": [3, 2, 1]}),
]


async def test_a_run_that_gives_way_computes_the_same_numbers(models: Path, runs_dir: Path) -> None:
    server = make_server(models, runs_dir)
    async with Client(server) as client:
        await call_tool_ok(client, "load_model", model="induction")
        alone = await call_tool_ok(client, "discover_circuit", **TASK, wait_seconds=0)
        await wait_for_run(client, alone["run_id"])
        beside = await call_tool_ok(client, "discover_circuit", **TASK, wait_seconds=0)
        for name, arguments in CALLS:
            await call_tool_ok(client, name, **arguments)
            assert server.session.runs.find(beside["run_id"]) is not None, "it ended too early"
        await wait_for_run(client, beside["run_id"])
    runs = [open_run(runs_dir, started["run_id"]) for started in (alone, beside)]
    assert [run.record.status for run in runs] == ["completed", "completed"]
    assert list(compare_runs(runs[0].path, runs[1].path)) == []
