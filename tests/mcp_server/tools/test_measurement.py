"""How many pairs a call measures.

It measures 32 of a built-in task, and as many of the caller's own as the call asks for. A note says
so if some of the caller's own pairs are left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from mcp_server.server.server import CircuitScoutServer
from tests.mcp_server.servers import call_tool_error, call_tool_ok

pytestmark = pytest.mark.anyio

FEW = "8 of 40 pairs were drawn; pairs=40 takes all."
OWN = [
    {
        "clean": [0, x, x + y, x],
        "corrupted": [0, x + y, x, x],
        "answer": x + y,
        "wrong": x + y + 1,
        "template": "abc"[x % 3],
    }
    for x in range(1, 21)
    for y in (1, 2)
]
MEASURES: list[tuple[str, dict[str, Any]]] = [
    ("check_task", {}),
    ("patch_sweep", {"site": "head_out"}),
    ("ablate_heads", {"nodes": ["a0.h2"], "controls": 0}),
    ("evaluate_circuit", {"nodes": ["a0.h2", "a1.h1"], "budget": 2000}),
]


def notes(result: dict[str, Any]) -> list[str]:
    warnings: list[str] = result["lint"]["warnings"] if "lint" in result else result["warnings"]
    return [note for note in warnings if "were drawn" in note]


def measured(result: dict[str, Any]) -> int:
    """Pairs that were measured, both splits of an evaluation together."""
    return int(result["n"]) if "n" in result else 2 * int(result["evaluation"]["discovery"]["n"])


@pytest.fixture
def file(models: Path) -> str:
    path = models / "own.jsonl"
    path.write_text("".join(f"{json.dumps(pair)}\n\n" for pair in OWN), encoding="utf-8")
    return "own.jsonl"


@pytest.mark.parametrize(("name", "arguments"), MEASURES)
async def test_that_not_all_of_the_callers_own_pairs_are_drawn_is_said(
    client: Client, file: str, name: str, arguments: dict[str, Any]
) -> None:
    for task in (OWN, file):
        result = await call_tool_ok(
            client, name, model_id="induction", task=task, pairs=40, **arguments
        )
        assert (
            36 <= measured(result) <= 48
        )  # whole templates are held out: the halves are not quite equal
        assert notes(result) == []
        few = await call_tool_ok(
            client, name, model_id="induction", task=task, pairs=8, **arguments
        )
        assert notes(few) == [FEW]
        assert measured(few) <= 10
        assert notes(
            await call_tool_ok(client, name, model_id="induction", task=task, **arguments)
        ) == [FEW.replace("8", "32", 1)]


async def test_a_final_look_is_not_spent_on_a_part_of_the_pairs(client: Client, file: str) -> None:
    for task in (OWN, file, "induction"):
        arguments = {
            "model_id": "induction",
            "task": task,
            "nodes": ["a0.h2", "a1.h1"],
            "final": True,
        }
        message = await call_tool_error(client, "evaluate_circuit", **arguments)
        assert "a verdict needs 96 pairs" in message or "no tokenizer" in message
    everything = await call_tool_ok(
        client, "evaluate_circuit", **{**arguments, "task": OWN, "pairs": 40, "budget": 3000}
    )
    assert everything["final"], "of as many as there are it may be taken"


async def test_of_a_built_in_task_32_are_drawn(server: CircuitScoutServer) -> None:
    async with Client(server) as client:
        await call_tool_ok(client, "load_model", model="bundled")
        result = await call_tool_ok(client, "check_task", model_id="bundled", task="ioi")
        assert (result["n"], notes(result)) == (32, [])
        assert (await call_tool_ok(client, "check_task", model_id="bundled", task="ioi", pairs=20))[
            "n"
        ] == 20


async def test_no_text_of_a_pair_makes_a_result_long(client: Client) -> None:
    labelled = [{**pair, "template": f"{n:03}{'x' * 90}"} for n, pair in enumerate(OWN)]
    result = await call_tool_ok(client, "check_task", model_id="induction", task=labelled)
    assert result["split"].startswith("whole templates held out: ")
    assert result["split"].endswith(" more")
    assert len(json.dumps(result)) <= 10_000
    for more in ({"template": "x" * 20_000}, {"labels": {"x" * 20_000: 1}}):
        message = await call_tool_error(
            client, "check_task", model_id="induction", task=[{**pair, **more} for pair in OWN]
        )
        assert "pair 1" in message
        assert "20000 characters" in message
        assert len(message) < 500
