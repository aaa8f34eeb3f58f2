"""Faulty arguments are explained once, with what is allowed."""

from __future__ import annotations

from typing import Any

import pytest
from mcp import Client

from tests.mcp_server.servers import (
    INDUCTION_TASK,
    call_tool_error,
)

pytestmark = pytest.mark.anyio

FLAW = {"clean": "a", "corrupted": "b", "answer": 1.5, "wrong": " c"}


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        (
            "check_task",
            {"task": 3},
            "task: Input should be a valid string / a valid list. (Built-in (ioi,",
        ),
        (
            "check_task",
            {"task": [FLAW]},
            "task.0.answer: Input should be a valid string / a valid integer / a valid list. "
            "(What follows",
        ),
        (
            "logit_lens",
            {"task": [{"clean": "a", "corrupted": "b", "wrong": " c"}]},
            "task.0.answer: Field required. (What follows",
        ),
        (
            "patch_sweep",
            {"task": [{**FLAW, "answer": " d", "labels": {"S2": "x"}}]},
            'task.0.labels: Input should be a valid integer. (Positions by name, as {"S2": 9',
        ),
        (
            "patch_sweep",
            {"task": [{**FLAW, "answer": " d", "anser": " d"}]},
            "task.0.anser: ",
        ),
        (
            "run_with_cache",
            {"prompt": 2.5},
            "prompt: Input should be a valid string / a valid list. (Text, or token ids",
        ),
        (
            "run_with_cache",
            {"prompt": [0, "a"]},
            "prompt.1: Input should be a valid integer. (Text, or token ids",
        ),
        (
            "ablate_heads",
            {"task": INDUCTION_TASK},
            'nodes: Field required. (Heads and MLPs: "a9.h6"',
        ),
        (
            "check_task",
            {"task": INDUCTION_TASK, "pairs": True},
            "pairs: Input should not be true or false. (How many prompt pairs",
        ),
        (
            "ablate_heads",
            {"task": INDUCTION_TASK, "nodes": ["a0.h2"], "per_node": 1},
            "per_node: Input should be true or false. (Also ablate",
        ),
    ],
)
async def test_a_faulty_argument_is_told_once(
    client: Client, name: str, arguments: dict[str, Any], expected: str
) -> None:
    first, *rest = (
        await call_tool_error(client, name, model_id="induction", **arguments)
    ).splitlines()
    assert first.startswith(expected)
    assert len(rest) == 1
    assert rest[0].startswith(f"{name} takes: ")


async def test_faults_name_cause_and_cure(client: Client) -> None:
    assert "does not exist" in await call_tool_error(
        client, "ablate_heads", model_id="induction", task=INDUCTION_TASK, nodes=["a9.h9"]
    )
    assert "no tokenizer" in await call_tool_error(
        client, "check_task", model_id="induction", task="ioi"
    )
    assert "greater than or equal to 1" in await call_tool_error(
        client, "patch_sweep", model_id="induction", task=INDUCTION_TASK, pairs=0
    )
    assert "Did you mean 'direction'" in await call_tool_error(
        client, "patch_sweep", model_id="induction", task=INDUCTION_TASK, directoin="noising"
    )
    pair = {"clean": [1, 2, 3], "corrupted": [1, 2], "answer": 1, "wrong": 2}
    assert "pair 1: clean has 3 tokens" in await call_tool_error(
        client, "check_task", model_id="induction", task=[pair]
    )
    assert "mlp_out does not exist" in await call_tool_error(
        client, "patch_sweep", model_id="induction", task=INDUCTION_TASK, site="mlp_out"
    )
