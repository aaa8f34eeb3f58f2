"""evaluate_circuit: verdicts on known circuits, final looks, and read-only servers."""

from __future__ import annotations

from pathlib import Path

import pytest
from mcp import Client

from tests.mcp_server.servers import (
    INDUCTION_CIRCUIT,
    INDUCTION_TASK,
    call_tool_error,
    call_tool_ok,
    make_server,
)

pytestmark = pytest.mark.anyio


async def test_evaluation_of_the_true_circuit_and_of_half_of_it(client: Client) -> None:
    whole = await call_tool_ok(
        client,
        "evaluate_circuit",
        model_id="induction",
        task=INDUCTION_TASK,
        nodes=sorted(INDUCTION_CIRCUIT),
        pairs=200,
    )
    assert whole["verdict"] == "partial"  # at most, on discovery pairs
    assert whole["evaluation"]["conditions"]["a"] == {"resample": "holds", "mean": "holds"}
    half = await call_tool_ok(
        client,
        "evaluate_circuit",
        model_id="induction",
        task=INDUCTION_TASK,
        nodes=["a1.h1"],
        pairs=200,
    )
    assert half["evaluation"]["conditions"]["a"]["resample"] == "fails"
    assert any("(a)" in reason for reason in half["reasons"])


async def test_a_read_only_server_writes_nothing(models: Path, runs_dir: Path) -> None:
    arguments = {
        "model_id": "induction",
        "task": INDUCTION_TASK,
        "nodes": sorted(INDUCTION_CIRCUIT),
        "pairs": 8,
    }
    async with Client(make_server(models, runs_dir, read_only=True)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        assert "without --read-only" in await call_tool_error(
            client, "evaluate_circuit", **arguments, final=True
        )
        await call_tool_ok(client, "evaluate_circuit", **arguments)
    assert not runs_dir.exists() or list(runs_dir.iterdir()) == []
