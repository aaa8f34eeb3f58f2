"""What the tools give: facts that hold, few characters, nothing that is not a number, and faults that can be mended."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
from mcp import Client
from pydantic import BaseModel

import discovery
from discovery.tasks import load_task
from mcp_server.server.server import CircuitScoutServer
from mcp_server.tools.result import Listing, fit_to_limit, round_number, round_numbers
from tests.mcp_server.servers import (
    INDUCTION_CIRCUIT,
    INDUCTION_TASK,
    call_tool_error,
    call_tool_ok,
    make_server,
)

pytestmark = pytest.mark.anyio

SWEEPS = ["resid_pre", "resid_post", "attn_out", "head_out", "head_out_by_position", "q", "k", "v"]


@pytest.mark.parametrize("site", SWEEPS)
async def test_a_sweep_of_every_kind(client: Client, site: str) -> None:
    found = await call_tool_ok(
        client, "patch_sweep", model_id="induction", task=INDUCTION_TASK, site=site, pairs=8, top=3
    )
    assert len(found["top"]) == 3
    effects = [abs(cell["effect"]) for cell in found["top"]]
    assert effects == sorted(effects, reverse=True)
    assert found["total"] == math.prod(found["grid"]["shape"]) - found["grid"]["n_nonfinite"]
    assert found["truncated"] == (found["total"] > 3)


async def test_a_sweep_is_the_libraries(client: Client, models: Path) -> None:
    """The tool adds nothing to what `discovery.patch_sweep` measures."""
    found = await call_tool_ok(
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
    for cell in found["top"]:
        assert cell["effect"] == pytest.approx(
            float(grid[cell["layer"], cell["head"]]), rel=1e-4, abs=1e-6
        )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("check_task", {}),
        ("patch_sweep", {"site": "head_out_by_position"}),
        ("ablate_heads", {"nodes": ["a0.h2", "a1.h1"], "per_node": True}),
        ("evaluate_circuit", {"nodes": ["a0.h2", "a1.h1"]}),
    ],
)
async def test_results_are_short(client: Client, name: str, arguments: dict[str, Any]) -> None:
    found = await call_tool_ok(client, name, model_id="induction", task=INDUCTION_TASK, **arguments)
    assert len(json.dumps(found)) <= 10_000


async def test_the_longest_results_are_bounded(client: Client) -> None:
    for name, arguments in (
        (
            "patch_sweep",
            {
                "task": INDUCTION_TASK,
                "site": "head_out_by_position",
                "top": 500,
                "detail": "detailed",
            },
        ),
        (
            "evaluate_circuit",
            {"task": INDUCTION_TASK, "nodes": ["a0.h2", "a1.h1"], "detail": "detailed"},
        ),
        (
            "run_with_cache",
            {
                "prompt": [0, 1, 2, 3],
                "sites": ["resid_pre", "head_out", "q", "k", "v"],
                "top": 100,
                "detail": "detailed",
            },
        ),
    ):
        assert (
            len(json.dumps(await call_tool_ok(client, name, model_id="induction", **arguments)))
            <= 40_000
        )


async def test_nothing_to_normalise_by_is_null_with_a_count(client: Client) -> None:
    """Clean and corrupted differ in a token that no head reads, so that the metric's gap is 0 or nearly so."""
    pair = {"clean": [0, 5, 6, 7], "corrupted": [0, 5, 8, 7], "answer": 3, "wrong": 4}
    same = {**pair, "answer": [3, 4], "wrong": [9, 10]}
    for inline in (pair, same):
        found = await call_tool_ok(
            client, "patch_sweep", model_id="induction", task=[inline], site="head_out"
        )
        assert "NaN" not in json.dumps(found)
        assert found["grid"]["n_nonfinite"] + found["total"] == 8


async def test_ablation_and_its_controls(client: Client) -> None:
    found = await call_tool_ok(
        client,
        "ablate_heads",
        model_id="induction",
        task=INDUCTION_TASK,
        nodes=["L0H2", "1.1"],
        per_node=True,
    )
    assert found["nodes"] == ["a0.h2", "a1.h1"]
    assert found["metric_clean"] > 4 > 0 > found["metric_ablated"]
    assert sorted(row["node"] for row in found["per_node"]) == found["nodes"]
    assert found["controls"]["as_large"] == 0
    assert found["controls"]["n"] == 10


async def test_check_task_on_a_task_that_the_model_does_not_do(client: Client) -> None:
    pairs = [
        {
            "clean": [0, n, n + 1, n + 2],
            "corrupted": [0, n + 1, n, n + 2],
            "answer": n,
            "wrong": n + 1,
        }
        for n in range(1, 13)
    ]
    found = await call_tool_ok(client, "check_task", model_id="induction", task=pairs)
    assert found["behaviour"] is False
    assert found["reasons"]


async def test_a_summary_of_activations(client: Client) -> None:
    found = await call_tool_ok(
        client,
        "run_with_cache",
        model_id="induction",
        prompt=[0, 5, 6, 7, 5],
        sites=["head_out", "pattern"],
        top=3,
    )
    assert [row["site"] for row in found["sites"]] == ["z.0", "z.1", "pattern.0", "pattern.1"]
    assert found["sites"][2]["shape"] == [4, 5, 5]
    assert len(found["predictions"]) == 3
    assert [layer["mlp"] for layer in found["layers"]] == [None, None]
    [content] = (await client.read_resource(found["activations"])).contents
    assert len(content.blob) > 100


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


async def test_a_bug_is_told_by_its_number_only(
    server: CircuitScoutServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mcp_server.session import lazy_discovery

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("/secret/path and a token")

    monkeypatch.setattr(lazy_discovery, "check_task", broken, raising=False)
    async with Client(server) as client:
        await call_tool_ok(client, "load_model", model="induction")
        text = await call_tool_error(
            client, "check_task", model_id="induction", task=INDUCTION_TASK
        )
    assert "secret" not in text
    number = text.split("Internal error ")[1].split()[0]
    assert number in caplog.text
    assert "/secret/path" in caplog.text


async def test_pictures_can_be_left_out(models: Path, tmp_path: Path) -> None:
    async with Client(make_server(models, tmp_path / "runs", images="omit")) as client:
        await call_tool_ok(client, "load_model", model="induction")
        result = await client.call_tool(
            "patch_sweep", {"model_id": "induction", "task": INDUCTION_TASK, "pairs": 4}
        )
    assert [block.type for block in result.content] == ["text", "resource_link", "resource_link"]


def test_a_result_is_cut_to_fit() -> None:
    class Many(Listing):
        shortened_fields: ClassVar[tuple[str, ...]] = ("rows",)
        rows: list[str]

    facts = fit_to_limit(Many(rows=["x" * 90] * 1000, total=1000), 10_000)
    assert facts["truncated"]
    assert 50 <= len(facts["rows"]) <= 110
    assert issubclass(Listing, BaseModel)


def test_numbers_for_reading() -> None:
    assert round_number(0.123456789) == 0.12346
    assert round_number(float("nan")) is None
    assert round_numbers({"a": [1.0, float("inf")], "b": True}) == {"a": [1.0, None], "b": True}


async def test_a_read_only_server_writes_nothing(models: Path, runs_dir: Path) -> None:
    given = {
        "model_id": "induction",
        "task": INDUCTION_TASK,
        "nodes": sorted(INDUCTION_CIRCUIT),
        "pairs": 8,
    }
    async with Client(make_server(models, runs_dir, read_only=True)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        assert "without --read-only" in await call_tool_error(
            client, "evaluate_circuit", **given, final=True
        )
        await call_tool_ok(client, "evaluate_circuit", **given)
    assert not runs_dir.exists() or list(runs_dir.iterdir()) == []


FLAW = {"clean": "a", "corrupted": "b", "answer": 1.5, "wrong": " c"}


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        (
            "check_task",
            {"task": 3},
            "task: Input should be a valid string / a valid list. (Built-in task (ioi,",
        ),
        (
            "check_task",
            {"task": [FLAW]},
            "task.0.answer: Input should be a valid string / a valid integer / a valid list. (What follows",
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
    client: Client, name: str, arguments: dict[str, Any], told: str
) -> None:
    first, *rest = (
        await call_tool_error(client, name, model_id="induction", **arguments)
    ).splitlines()
    assert first.startswith(told)
    assert len(rest) == 1
    assert rest[0].startswith(f"{name} takes: ")
