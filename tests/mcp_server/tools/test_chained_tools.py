"""A client that chains the tools by simple rules reaches the circuit that `discover` finds."""

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
    result = discovery.discover(
        model, load_task(str(models / name / "task.jsonl"), model), runs_dir=runs_dir
    )
    assert result.circuit.verdict == "verified"
    async with Client(make_server(models, runs_dir)) as client:
        assert await chain(client, name) == {str(node) for node in result.circuit.members}


async def chain(client: Client, name: str) -> set[str]:
    """Sweep, ablate and evaluate, as the skill says; only the results of the tools decide."""
    facts = await call_tool_ok(client, "load_model", model=name)
    arguments = {"model_id": name, "task": f"{name}/task.jsonl"}
    assert (await call_tool_ok(client, "check_task", **arguments))["behaviour"]
    assert (await call_tool_ok(client, "patch_sweep", **arguments))["top"][0]["effect"] > 0.1
    nodes: set[str] = set()
    for site in ("head_out",) if facts["attn_only"] else ("head_out", "mlp_out"):
        for direction in ("denoising", "noising"):
            sweep = await call_tool_ok(
                client, "patch_sweep", **arguments, site=site, direction=direction, top=50
            )
            nodes |= {cell["node"] for cell in sweep["top"] if abs(cell["effect"]) >= 0.1}
    ablation = await call_tool_ok(client, "ablate_heads", **arguments, nodes=sorted(nodes))
    assert ablation["metric_ablated"] < ablation["metric_clean"] / 2
    for _ in range(6):  # adds the node that is missed most, or drops the nodes that are idle
        evaluation = await call_tool_ok(
            client,
            "evaluate_circuit",
            **arguments,
            nodes=sorted(nodes),
            pairs=200,
            detail="detailed",
        )
        evidence = evaluation["evaluation"]["discovery"]["ablations"]["resample"]
        if evidence["completeness"]["max_gap_out"] > 0.1:
            nodes = nodes | {evidence["completeness"]["node_out"]}
            continue
        idle = {row["node"] for row in evidence["minimality"] if row["drop"] < 0.02}
        if not idle:
            break
        nodes = nodes - idle
    return nodes
