"""ablate_heads: the set, each node alone, and the controls."""

from __future__ import annotations

import pytest
from mcp import Client

from tests.mcp_server.servers import (
    INDUCTION_TASK,
    call_tool_ok,
)

pytestmark = pytest.mark.anyio


async def test_ablation_and_its_controls(client: Client) -> None:
    result = await call_tool_ok(
        client,
        "ablate_heads",
        model_id="induction",
        task=INDUCTION_TASK,
        nodes=["L0H2", "1.1"],
        per_node=True,
    )
    assert result["nodes"] == ["a0.h2", "a1.h1"]
    assert result["metric_clean"] > 4 > 0 > result["metric_ablated"]
    assert sorted(row["node"] for row in result["per_node"]) == result["nodes"]
    assert result["controls"]["as_large"] == 0
    assert result["controls"]["n"] == 10


async def test_single_ablations_stand_by_what_they_change(client: Client) -> None:
    nodes = [f"a{layer}.h{head}" for layer in range(2) for head in range(4)]
    result = await call_tool_ok(
        client,
        "ablate_heads",
        model_id="induction",
        task=INDUCTION_TASK,
        nodes=nodes,
        per_node=True,
    )
    changes = [abs(row["change"]) for row in result["per_node"]]
    assert changes == sorted(changes, reverse=True)
    assert {row["node"] for row in result["per_node"][:2]} == {"a0.h2", "a1.h1"}
