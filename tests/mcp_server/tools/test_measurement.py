"""How many pairs a call measures: 32 of a built-in task, every one of the caller's own, and word where some were left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from mcp_server.server.server import CircuitScoutServer
from tests.mcp_server.servers import INDUCTION_TASK, call_tool_error, call_tool_ok

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


def notes(found: dict[str, Any]) -> list[str]:
    said: list[str] = found["lint"]["warnings"] if "lint" in found else found["warnings"]
    return [note for note in said if "were drawn" in note]


def measured(found: dict[str, Any]) -> int:
    """Pairs that were measured, both splits of an evaluation together."""
    return int(found["n"]) if "n" in found else 2 * int(found["evaluation"]["discovery"]["n"])


@pytest.fixture
def file(models: Path) -> str:
    place = models / "own.jsonl"
    place.write_text("".join(f"{json.dumps(pair)}\n\n" for pair in OWN), encoding="utf-8")
    return "own.jsonl"


@pytest.mark.parametrize(("name", "arguments"), MEASURES)
async def test_that_not_all_of_the_callers_own_pairs_are_drawn_is_said(
    client: Client, file: str, name: str, arguments: dict[str, Any]
) -> None:
    for task in (OWN, file):
        found = await call_tool_ok(
            client, name, model_id="induction", task=task, pairs=40, **arguments
        )
        assert (
            36 <= measured(found) <= 48
        )  # whole templates are held out: the halves are not quite equal
        assert notes(found) == []
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
        asked = {"model_id": "induction", "task": task, "nodes": ["a0.h2", "a1.h1"], "final": True}
        told = await call_tool_error(client, "evaluate_circuit", **asked)
        assert "a verdict needs 96 pairs" in told or "no tokenizer" in told
    everything = await call_tool_ok(
        client, "evaluate_circuit", **{**asked, "task": OWN, "pairs": 40, "budget": 3000}
    )
    assert everything["final"], "of as many as there are it may be taken"


async def test_of_a_built_in_task_32_are_drawn(server: CircuitScoutServer) -> None:
    async with Client(server) as client:
        await call_tool_ok(client, "load_model", model="bundled")
        found = await call_tool_ok(client, "check_task", model_id="bundled", task="ioi")
        assert (found["n"], notes(found)) == (32, [])
        assert (await call_tool_ok(client, "check_task", model_id="bundled", task="ioi", pairs=20))[
            "n"
        ] == 20


async def test_no_text_of_a_pair_makes_a_result_long(client: Client) -> None:
    named = [{**pair, "template": f"{n:03}{'x' * 90}"} for n, pair in enumerate(OWN)]
    found = await call_tool_ok(client, "check_task", model_id="induction", task=named)
    assert found["split"].startswith("whole templates held out: ")
    assert found["split"].endswith(" more")
    assert len(json.dumps(found)) <= 10_000
    for more in ({"template": "x" * 20_000}, {"labels": {"x" * 20_000: 1}}):
        told = await call_tool_error(
            client, "check_task", model_id="induction", task=[{**pair, **more} for pair in OWN]
        )
        assert "pair 1" in told
        assert "20000 characters" in told
        assert len(told) < 500


async def test_a_sweep_lists_every_position_and_counts_its_nulls(client: Client) -> None:
    found = await call_tool_ok(
        client,
        "patch_sweep",
        model_id="induction",
        task=INDUCTION_TASK,
        site="head_out_by_position",
        screen=True,
        pairs=8,
    )
    [content] = (await client.read_resource(found["values"])).contents
    grid = json.loads(content.text)
    assert grid["n_null"] == json.dumps(grid["values"]).count("null")
    assert grid["n_null_estimates"] == json.dumps(grid["gradient_estimates"]).count("null")
    assert grid["n_null"] >= found["grid"]["n_nonfinite"]
