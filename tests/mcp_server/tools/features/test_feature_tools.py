"""The tools on features, with an SAE in the models directory, on a prompt and on a task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mcp import Client

from tests.mcp_server.servers import INDUCTION_TASK, call_tool_error, call_tool_ok, make_server
from tests.tiny_saes import random_module, saelens

pytestmark = pytest.mark.anyio


def dictionary(models: Path) -> str:
    """Save a random SAE in the models directory, and return its name."""
    saelens()
    random_module("standard", 88, 64, "blocks.1.hook_resid_pre").save_model(
        str(models / "saes" / "layer1")
    )
    return "saes/layer1"


async def test_features_of_a_prompt_and_of_a_task(models: Path, runs_dir: Path) -> None:
    dictionary(models)
    async with Client(make_server(models, runs_dir)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        for arguments in (
            {"prompt": [0, 5, 6, 7, 5]},
            {"task": INDUCTION_TASK, "pairs": 8, "positions": [-1]},
        ):
            result = await call_tool_ok(
                client,
                "sae_top_features",
                model_id="induction",
                sae="saes/layer1",
                k=3,
                **arguments,
            )
            assert len(result["features"]) == 3
            assert result["sae"] == "saes/layer1"
            assert len(result["features"][0]["by_pair"]) == result["n"]
            assert len(json.dumps(result)) <= 10_000
        assert "POOR RECONSTRUCTION" in result["warnings"][0]


async def test_the_order_and_integrated_gradients_can_be_asked_for(
    models: Path, runs_dir: Path
) -> None:
    sae = dictionary(models)
    async with Client(make_server(models, runs_dir)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        arguments = {
            "model_id": "induction",
            "sae": sae,
            "task": INDUCTION_TASK,
            "pairs": 6,
            "positions": [-1],
            "k": 3,
        }
        results = {
            by: await call_tool_ok(client, "sae_top_features", by=by, steps=2, **arguments)
            for by in ("activation", "attribution", "ablation")
        }
        for by, result in results.items():
            fields = list(result)  # a poor reconstruction must be read before any number
            assert fields.index("warnings") < fields.index("model_id")
            assert result["by"] == by
            sizes = [abs(feature[by]["mean"]) for feature in result["features"]]
            assert sizes == sorted(sizes, reverse=True)


EDIT = {"model_id": "induction", "features": {"3": 50.0, "7": -20.0}, "operation": "add"}


async def test_features_are_changed_with_the_effect_on_metric_and_text(
    models: Path, runs_dir: Path
) -> None:
    arguments = {**EDIT, "sae": dictionary(models)}
    async with Client(make_server(models, runs_dir)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        edited = await call_tool_ok(
            client,
            "edit_features",
            task=INDUCTION_TASK,
            pairs=6,
            prompt=[0, 5, 6, 7, 5],
            positions=[-1],
            tokens=3,
            **arguments,
        )
        assert edited["on_metric"]["n"] == 6
        effect = edited["on_metric"]["effect"]
        assert effect["low"] <= effect["mean"] <= effect["high"]
        assert effect["mean"] != 0
        texts = (edited["on_text"]["clean"], edited["on_text"]["edited"])
        assert [len(text.split()) for text in texts] == [3, 3]
        unchanged = await call_tool_ok(
            client,
            "edit_features",
            **{**arguments, "features": {"3": 0.0}},
            task=INDUCTION_TASK,
            pairs=6,
        )
        assert unchanged["on_metric"]["effect"] == {"mean": 0, "low": 0, "high": 0}
        assert unchanged["on_text"] is None


async def test_changes_that_make_no_sense_are_refused(models: Path, runs_dir: Path) -> None:
    arguments = {**EDIT, "sae": dictionary(models)}
    async with Client(make_server(models, runs_dir)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        assert "a task, a prompt, or both" in await call_tool_error(
            client, "edit_features", **arguments
        )
        assert "does not exist" in await call_tool_error(
            client,
            "edit_features",
            **{**arguments, "features": {"999": 1}},
            prompt=[0, 5],
            tokens=2,
        )
        assert "not a position of this prompt" in await call_tool_error(
            client, "edit_features", prompt=[0, 5], positions=["end"], tokens=2, **arguments
        )


async def test_a_text_is_read_for_features(
    models: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CIRCUIT_SCOUT_CACHE_DIR", str(tmp_path))
    sae = dictionary(models)
    (models / "corpus.jsonl").write_text(
        "".join(json.dumps({"tokens": [0, n % 24, 5, 6, n % 7]}) + "\n" for n in range(40))
    )
    arguments = {"model_id": "induction", "sae": sae, "features": [3, 7], "text": "corpus.jsonl"}
    async with Client(make_server(models, runs_dir)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        first, again = [await call_tool_ok(client, "sae_examples", **arguments) for _ in range(2)]
        assert (first["cached"], again["cached"]) == (False, True)
        assert first["features"] == again["features"]
        assert first["documents"] == 40
        assert any(card["top"] for card in first["features"])
        assert "There is no text file" in await call_tool_error(
            client, "sae_examples", **{**arguments, "text": "../corpus.jsonl"}
        )
        assert "no tokenizer" in await call_tool_error(
            client, "sae_examples", **{**arguments, "text": ["words"]}
        )
    async with Client(make_server(models, runs_dir, read_only=True)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        assert not (await call_tool_ok(client, "sae_examples", **arguments))["cached"]


@pytest.mark.slow
async def test_features_are_put_beside_the_circuit_of_a_run(models: Path, runs_dir: Path) -> None:
    sae = dictionary(models)
    async with Client(make_server(models, runs_dir)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        run = await call_tool_ok(
            client,
            "discover_circuit",
            model_id="induction",
            task=INDUCTION_TASK,
            pairs=16,
            wait_seconds=120,
        )
        arguments = {"run_id": run["run_id"], "model_id": "induction", "sae": sae, "k": 4}
        result = await call_tool_ok(client, "circuit_features", **arguments)
        assert result["verdict"] == run["verdict"]
        assert len(result["candidates"]) == 4
        holding = {candidate["id"] for candidate in result["candidates"] if candidate["holds"]}
        assert all(candidate["why"] for candidate in result["candidates"] if not candidate["holds"])
        circuit = await call_tool_ok(client, "get_circuit", run_id=run["run_id"])
        assert {node["id"] for node in circuit["nodes"]} == {
            node["id"] for node in run["nodes"]
        } | holding
        assert circuit["verdict"] == run["verdict"]
        record = json.loads((runs_dir / run["run_id"] / "circuit.json").read_text())
        assert record["graph"]["dictionaries"][0]["sae"] == "layer1"
        assert str(models) not in json.dumps(record["graph"]["dictionaries"])
        assert "no run" in await call_tool_error(
            client, "circuit_features", **{**arguments, "run_id": "nobody"}
        )


async def test_what_is_missing_is_said(client: Client) -> None:
    assert "of the bundled model, and does not belong" in await call_tool_error(
        client, "sae_top_features", model_id="induction", prompt=[0, 1]
    )
    assert "one of prompt and task" in await call_tool_error(
        client, "sae_top_features", model_id="induction", sae="a/b"
    )
    assert "There is no SAE directory" in await call_tool_error(
        client, "sae_top_features", model_id="induction", sae="../saes", prompt=[0, 1]
    )
