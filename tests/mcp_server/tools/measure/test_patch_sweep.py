"""patch_sweep: its numbers are the library's, its cells fit, and its pictures can be left out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from mcp import Client

import discovery
from discovery.tasks import load_task
from mcp_server.server.server import CircuitScoutServer
from tests.mcp_server.servers import (
    INDUCTION_TASK,
    call_tool_ok,
    make_server,
)

pytestmark = pytest.mark.anyio

SWEEPS = ["resid_pre", "resid_post", "attn_out", "head_out", "head_out_by_position", "q", "k", "v"]


@pytest.mark.parametrize("site", SWEEPS)
async def test_a_sweep_of_every_kind(client: Client, site: str) -> None:
    result = await call_tool_ok(
        client, "patch_sweep", model_id="induction", task=INDUCTION_TASK, site=site, pairs=8, top=3
    )
    assert len(result["top"]) == 3
    effects = [abs(cell["effect"]) for cell in result["top"]]
    assert effects == sorted(effects, reverse=True)
    assert result["total"] == math.prod(result["grid"]["shape"]) - result["grid"]["n_nonfinite"]
    assert result["truncated"] == (result["total"] > 3)


async def test_a_sweep_is_the_libraries(client: Client, models: Path) -> None:
    """The tool adds nothing to what `discovery.patch_sweep` measures."""
    result = await call_tool_ok(
        client,
        "patch_sweep",
        model_id="induction",
        task=INDUCTION_TASK,
        site="head_out",
        pairs=16,
        seed=3,
    )
    model = discovery.load_model(models / "induction")
    task = load_task(models / INDUCTION_TASK, model, pairs=16, seed=3)
    grid = discovery.patch_sweep(model, task, "head_out").values
    for cell in result["top"]:
        assert cell["effect"] == pytest.approx(
            float(grid[cell["layer"], cell["head"]]), rel=1e-4, abs=1e-6
        )


async def test_a_sweep_gives_the_most_cells_that_fit(server: CircuitScoutServer) -> None:
    arguments = {
        "model_id": "bundled",
        "task": "ioi",
        "site": "head_out_by_position",
        "top": 500,
        "pairs": 2,
    }
    async with Client(server) as client:
        await call_tool_ok(client, "load_model", model="bundled")
        result = await call_tool_ok(client, "patch_sweep", **arguments)
        more = await call_tool_ok(client, "patch_sweep", **arguments, detail="detailed")
    assert 9_800 <= len(json.dumps(result)) <= 10_000
    assert result["truncated"]
    assert "detail='detailed'" in result["narrow"]
    assert len(result["top"]) < len(more["top"]) == min(500, more["total"])
    assert result["top"] == more["top"][: len(result["top"])]


async def test_nothing_to_normalise_by_is_null_with_a_count(client: Client) -> None:
    """Clean and corrupted differ in a token that no head reads, so the gap is about 0."""
    pair = {"clean": [0, 5, 6, 7], "corrupted": [0, 5, 8, 7], "answer": 3, "wrong": 4}
    same = {**pair, "answer": [3, 4], "wrong": [9, 10]}
    for inline in (pair, same):
        result = await call_tool_ok(
            client, "patch_sweep", model_id="induction", task=[inline], site="head_out"
        )
        assert "NaN" not in json.dumps(result)
        assert result["grid"]["n_nonfinite"] + result["total"] == 8


async def test_a_sweep_lists_every_position_and_counts_its_nulls(client: Client) -> None:
    result = await call_tool_ok(
        client,
        "patch_sweep",
        model_id="induction",
        task=INDUCTION_TASK,
        site="head_out_by_position",
        screen=True,
        pairs=8,
    )
    [content] = (await client.read_resource(result["values"])).contents
    grid = json.loads(content.text)
    assert grid["n_null"] == json.dumps(grid["values"]).count("null")
    assert grid["n_null_estimates"] == json.dumps(grid["gradient_estimates"]).count("null")
    assert grid["n_null"] >= result["grid"]["n_nonfinite"]


async def test_pictures_can_be_left_out(models: Path, tmp_path: Path) -> None:
    async with Client(make_server(models, tmp_path / "runs", images="omit")) as client:
        await call_tool_ok(client, "load_model", model="induction")
        result = await client.call_tool(
            "patch_sweep", {"model_id": "induction", "task": INDUCTION_TASK, "pairs": 4}
        )
    assert [block.type for block in result.content] == ["text", "resource_link", "resource_link"]
