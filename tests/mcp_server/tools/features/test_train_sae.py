"""Training through the tool: estimated, waited for or not, stopped, resumed, and then used."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from mcp import Client

from tests.mcp_server.servers import (
    INDUCTION_TASK,
    call_tool_error,
    call_tool_ok,
    make_server,
    wait_for_run,
)

pytestmark = pytest.mark.anyio

SMALL = {"site": "resid_pre.1", "features": 32, "tokens": 2000}


@pytest.fixture(autouse=True)
def _few_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reports would take longer than the training."""
    from discovery.features.training import loop

    monkeypatch.setattr(loop, "REPORTS_PER_TRAINING", 2)


@pytest.fixture
def text(models: Path) -> str:
    """Documents of token ids, for the hand-built model has no tokenizer."""
    rng = random.Random(0)
    rows = ({"tokens": [rng.randrange(8) for _ in range(rng.randint(3, 8))]} for _ in range(150))
    (models / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "rows.jsonl"


async def test_estimated_trained_and_used(models: Path, runs_dir: Path, text: str) -> None:
    async with Client(make_server(models, runs_dir)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        estimate = await call_tool_ok(
            client, "train_sae", model_id="induction", text=text, dry_run=True, **SMALL
        )
        assert (estimate["status"], estimate["run_id"], estimate["features"]) == (
            "estimated",
            None,
            32,
        )
        assert estimate["expected"]["seconds"] > 0
        assert not runs_dir.exists() or not list(runs_dir.glob("sae-*"))
        reported: list[float] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            reported.append(done)

        result = await client.call_tool(
            "train_sae",
            {"model_id": "induction", "text": text, "wait_seconds": 200, **SMALL},
            progress_callback=progress,
        )
        training = result.structured_content
        assert training is not None, result.content
        assert training["status"] == "completed", training
        assert reported == sorted(reported)
        assert training["scores"]["variance_explained"] > 0
        run_id = training["run_id"]
        assert (runs_dir / run_id / "sae" / "cfg.json").exists()
        assert await call_tool_ok(client, "train_sae", run_id=run_id) == training
        await check_completed_training(client, run_id)
        [record] = (await client.read_resource(f"scout://runs/{run_id}/run.json")).contents
        assert json.loads(record.text)["configuration"]["text"]["name"] == "rows.jsonl"
        assert str(models) not in record.text


async def check_completed_training(client: Client, run_id: str) -> None:
    """The other tools know a completed training, and use its SAE."""
    state = await call_tool_ok(client, "run_status", run_id=run_id)
    assert (state["status"], state["verdict"], state["stages"][-1]["stage"]) == (
        "completed",
        None,
        "scores",
    )
    assert (
        "loss recovered" in state["stages"][-1]["concluded"]
        or "variance explained" in state["stages"][-1]["concluded"]
    )
    [line] = (await call_tool_ok(client, "list_runs"))["runs"]
    assert (line["run_id"], line["kind"]) == (run_id, "sae")
    features = await call_tool_ok(
        client,
        "sae_top_features",
        model_id="induction",
        sae=run_id,
        task=INDUCTION_TASK,
        pairs=4,
        k=2,
    )
    assert (features["sae"], features["reads"], features["total"]) == (
        run_id,
        "resid_pre.1",
        32,
    )
    assert "trains an SAE" in await call_tool_error(client, "get_circuit", run_id=run_id)
    assert f'train_sae(run_id="{run_id}")' in await call_tool_error(
        client, "discover_circuit", run_id=run_id
    )


async def test_stopped_and_resumed_after_a_restart(models: Path, runs_dir: Path, text: str) -> None:
    async with Client(make_server(models, runs_dir)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        started = await call_tool_ok(
            client,
            "train_sae",
            model_id="induction",
            text=text,
            wait_seconds=0,
            **{**SMALL, "tokens": 20_000},
        )
        run_id = started["run_id"]
        assert started["status"] == "running"
        stopped = await call_tool_ok(client, "cancel_run", run_id=run_id)
        assert stopped["status"] == "interrupted"
        assert f'train_sae(run_id="{run_id}")' in stopped["next"]
        await call_tool_ok(
            client, "check_task", model_id="induction", task=INDUCTION_TASK, pairs=4
        )  # the device is free again
        unfinished = await call_tool_error(
            client, "sae_top_features", model_id="induction", sae=run_id, prompt=[0, 1]
        )
        assert f"The training {run_id} is interrupted, and has no SAE yet" in unfinished
        assert f"train_sae(run_id='{run_id}')" in unfinished
        assert str(runs_dir) not in unfinished
    async with Client(make_server(models, runs_dir)) as later:
        await call_tool_ok(later, "train_sae", run_id=run_id, wait_seconds=0)
        state = await wait_for_run(later, run_id)
        assert state["status"] == "completed", state


async def test_a_task_of_the_bundled_model_and_no_sae_at_all(models: Path, runs_dir: Path) -> None:
    async with Client(make_server(models, runs_dir)) as client:
        await call_tool_ok(client, "load_model", model="bundled")
        expected = await call_tool_ok(
            client,
            "train_sae",
            model_id="bundled",
            task="ioi",
            pairs=20,
            dry_run=True,
            features=16,
            tokens=64,
        )
        assert (expected["site"], expected["features"]) == ("resid_pre.2", 16)
        result = await call_tool_ok(
            client, "sae_top_features", model_id="bundled", task="ioi", pairs=8, k=2
        )
        assert (result["sae"], result["reads"], result["total"]) == ("bundled", "resid_pre.2", 1024)
        assert result["warnings"] == []
        assert result["share_of_metric"] == pytest.approx(1, abs=0.2)


async def test_what_is_wrong_is_said(models: Path, runs_dir: Path, text: str) -> None:
    async with Client(make_server(models, runs_dir)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        arguments = {"model_id": "induction"}
        assert "train_sae needs model_id" in await call_tool_error(client, "train_sae", text=text)
        assert "train_sae needs one of text and task" in await call_tool_error(
            client, "train_sae", **arguments
        )
        assert "train_sae needs one of text and task" in await call_tool_error(
            client, "train_sae", text=text, task=INDUCTION_TASK, **arguments
        )
        assert "There is no text file '../x'" in await call_tool_error(
            client, "train_sae", text="../x", **arguments
        )
        assert "Layer 9 does not exist" in await call_tool_error(
            client, "train_sae", text=text, site="resid_pre.9", **arguments
        )
        assert "k is 40" in await call_tool_error(
            client, "train_sae", text=text, k=40, features=32, **arguments
        )
        assert "does not belong to" in await call_tool_error(
            client, "sae_top_features", prompt=[0, 1], **arguments
        )
        assert "There is no run" in await call_tool_error(client, "train_sae", run_id="nothing")
        assert not list(runs_dir.glob("sae-*"))
