"""A client that chains the tools by rules of its own reaches the circuit that `circuit-scout discover` finds: there is one brain."""

from __future__ import annotations

from pathlib import Path

import pytest
from mcp import Client

import discovery
from discovery.tasks import load_task
from tests.mcp_server.servers import call_tool_ok, make_server

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", ["induction", pytest.param("or_mlp", marks=pytest.mark.slow)])
async def test_the_chain_of_tools_and_discover_agree(
    name: str, models: Path, runs_dir: Path
) -> None:
    model = discovery.load_model(models / name)
    found = discovery.discover(
        model, load_task(str(models / name / "task.jsonl"), model), runs_dir=runs_dir
    )
    assert found.circuit.verdict == "verified"
    async with Client(make_server(models, runs_dir)) as client:
        assert await chain(client, name) == {str(node) for node in found.circuit.members}


async def chain(client: Client, name: str) -> set[str]:
    """Sweep, heads, ablate, evaluate, as the skill says; only what the tools answer decides."""
    facts = await call_tool_ok(client, "load_model", model=name)
    given = {"model_id": name, "task": f"{name}/task.jsonl"}
    assert (await call_tool_ok(client, "check_task", **given))["behaviour"]
    assert (await call_tool_ok(client, "patch_sweep", **given))["top"][0]["effect"] > 0.1
    chosen: set[str] = set()
    for site in ("head_out",) if facts["attn_only"] else ("head_out", "mlp_out"):
        for direction in ("denoising", "noising"):
            swept = await call_tool_ok(
                client, "patch_sweep", **given, site=site, direction=direction, top=50
            )
            chosen |= {cell["node"] for cell in swept["top"] if abs(cell["effect"]) >= 0.1}
    ablated = await call_tool_ok(client, "ablate_heads", **given, nodes=sorted(chosen))
    assert ablated["metric_ablated"] < ablated["metric_clean"] / 2
    for _ in range(6):  # what the evaluation misses is added, what it does not need is dropped
        judged = await call_tool_ok(
            client, "evaluate_circuit", **given, nodes=sorted(chosen), pairs=200, detail="detailed"
        )
        evidence = judged["evaluation"]["discovery"]["ablations"]["resample"]
        if evidence["completeness"]["max_gap_out"] > 0.1:
            chosen = chosen | {evidence["completeness"]["node_out"]}
            continue
        idle = {row["node"] for row in evidence["minimality"] if row["drop"] < 0.02}
        if not idle:
            break
        chosen = chosen - idle
    return chosen
