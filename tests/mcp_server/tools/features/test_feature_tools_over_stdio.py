"""The features tools as a client of a server process has them: over stdio, on the bundled model and its dictionary.

What the tools say is held against the same measurement made here, in Python, and against what is on disk.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client

from discovery import (
    edit_features,
    feature_examples,
    load_model,
    load_sae,
    load_task,
    sae_top_features,
)
from discovery.backends.base import Backend
from discovery.store import open_run
from tests.mcp_server.servers import ERAS, call_tool_error, call_tool_ok, connect_over_stdio
from tests.tiny_saes import saelens

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

END = {"model_id": "bundled", "task": "ioi", "positions": ["end"]}


@pytest.fixture(scope="module")
def model() -> Backend:
    return load_model("bundled", device="cpu")


@pytest.fixture
async def client(
    models: Path, runs_dir: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Client]:
    """Of a server in a process of its own, with the bundled model loaded."""
    async with connect_over_stdio(models, runs_dir, getattr(request, "param", "auto")) as connected:
        await call_tool_ok(connected, "load_model", model="bundled")
        yield connected


@pytest.mark.parametrize("client", ERAS, indirect=True)
async def test_the_bundled_dictionary_answers(client: Client, model: Backend) -> None:
    task = load_task("ioi", model, pairs=32)
    found = await call_tool_ok(client, "sae_top_features", **END, k=3, by="ablation")
    mine = sae_top_features(model, task=task, positions=["end"], k=3, by="ablation", controls=19)
    assert (found["sae"], found["reads"], found["warnings"], found["n"]) == (
        "bundled",
        "resid_pre.2",
        [],
        32,
    )
    assert found["variance_explained"] == pytest.approx(
        mine.reconstruction.variance_explained, rel=1e-3
    )
    assert mine.reconstruction.share is not None
    assert (found["l0"], found["share_of_metric"]) == (
        16,
        pytest.approx(mine.reconstruction.share.mean, rel=1e-3),
    )
    assert [one["index"] for one in found["features"]] == [one.index for one in mine.features]
    for told, own in zip(found["features"], mine.features, strict=True):
        assert own.attribution is not None
        for name, interval in (
            ("activation", own.activation),
            ("attribution", own.attribution),
            ("ablation", own.ablation),
        ):
            assert told[name] == pytest.approx(
                {"mean": interval.mean, "low": interval.low, "high": interval.high},
                rel=1e-3,
                abs=1e-3,
            )
        assert told["fires_on"][0]["text"] == own.tokens[0].text == "to"
        assert told["promotes"][0]["text"] == own.direct.promoted[0].text
        assert told["share_unrelated"] == pytest.approx(own.consistency.unrelated.share, abs=1e-3)
    first = found["features"][0]
    assert (first["index"], first["control_p"], first["link"]) == (60, 0.05, None)

    edited = await call_tool_ok(
        client,
        "edit_features",
        **{**END, "positions": [-1]},
        features={"60": 0},
        prompt=list(task.pairs[0].clean),
        tokens=3,
    )
    effect = edit_features(model, task, None, {60: 0.0}, positions=["end"]).effect
    assert (
        edited["on_metric"]["effect"]["mean"]
        == pytest.approx(effect.mean, rel=1e-3)
        == pytest.approx(-first["ablation"]["mean"], rel=1e-3)
    )
    assert edited["on_metric"]["control_p"] == 0.05
    assert edited["on_text"]["clean"]
    assert "not finite" in await call_tool_error(
        client, "edit_features", **END, features={"60": 1e300}
    )

    read = await call_tool_ok(client, "sae_examples", model_id="bundled", features=[60], text="ioi")
    [card] = feature_examples(model, None, "ioi", [60], cache=False).features
    assert read["features"][0]["density"] == pytest.approx(card.density, rel=1e-2)
    assert read["features"][0]["top"][0]["text"].endswith("« to»")
    prompt = await call_tool_ok(
        client, "sae_top_features", model_id="bundled", prompt=list(task.pairs[0].clean), k=1
    )
    assert prompt["answer"] == model.tokenizer.decode(list(task.pairs[0].answer[:1]))  # type: ignore[union-attr]
    assert prompt["wrong"] not in (None, prompt["answer"])


async def test_a_training_in_the_background_is_followed_and_then_read(
    client: Client, model: Backend, runs_dir: Path
) -> None:
    begun = await call_tool_ok(
        client,
        "train_sae",
        model_id="bundled",
        task="ioi",
        pairs=200,
        site="resid_pre.1",
        features=64,
        tokens=6000,
        wait_seconds=0,
    )
    run_id = begun["run_id"]
    assert begun["status"] == "running"
    state = await ended(client, run_id)
    assert [state["status"], state["stages"][-1]["stage"]] == ["completed", "scores"]
    done = await call_tool_ok(client, "train_sae", run_id=run_id)
    record = open_run(runs_dir, run_id).record
    assert record.scores is not None
    assert done["scores"]["variance_explained"] == pytest.approx(
        record.scores["variance_explained"], rel=1e-3
    )
    assert saelens().SAE.load_from_disk(runs_dir / run_id / "sae").cfg.d_sae == 64
    [told] = (await client.read_resource(f"scout://runs/{run_id}/run.json")).contents
    assert json.loads(told.text)["kind"] == "sae"

    here: dict[str, Any] = {"model_id": "bundled", "sae": run_id}
    top = await call_tool_ok(client, "sae_top_features", **here, task="ioi", pairs=8, k=2)
    mine = sae_top_features(
        model,
        load_sae(run_id, model, runs_dir=runs_dir),
        task=load_task("ioi", model, pairs=8),
        k=2,
    )
    assert (top["sae"], top["reads"], top["total"]) == (run_id, "resid_pre.1", 64)
    assert [one["index"] for one in top["features"]] == [one.index for one in mine.features]
    feature = top["features"][0]["index"]
    edited = await call_tool_ok(
        client, "edit_features", **here, task="ioi", pairs=8, features={str(feature): 0}
    )
    assert edited["on_metric"]["effect"]["mean"] == pytest.approx(
        -top["features"][0]["ablation"]["mean"], rel=1e-2, abs=1e-3
    )
    read = await call_tool_ok(client, "sae_examples", **here, text="ioi", features=[feature])
    assert (read["sae"], read["features"][0]["index"]) == (run_id, feature)


@pytest.mark.timeout(900)
async def test_features_beside_the_circuit_of_a_discovery(client: Client, runs_dir: Path) -> None:
    begun = await call_tool_ok(
        client, "discover_circuit", model_id="bundled", task="ioi", pairs=96, wait_seconds=0
    )
    run_id = begun["run_id"]
    assert (await ended(client, run_id))["status"] == "completed"
    before = await call_tool_ok(client, "get_circuit", run_id=run_id)
    found = await call_tool_ok(client, "circuit_features", run_id=run_id, model_id="bundled")
    assert (found["sae"], found["verdict"], found["warnings"]) == ("bundled", before["verdict"], [])
    assert found["variance_explained"] > 0.9
    assert found["share_of_metric"] == pytest.approx(1, abs=0.1)
    held = {one["id"] for one in found["candidates"] if one["holds"]}
    assert held
    assert all(
        abs(one["noising"]) >= 0.01 and one["control_p"] == 0.05
        for one in found["candidates"]
        if one["holds"]
    )
    assert all(one["why"] for one in found["candidates"] if not one["holds"])
    sources, targets = (
        {edge["source"] for edge in found["edges"]},
        {edge["target"] for edge in found["edges"]},
    )
    assert "a2.h0" in targets, "a feature is read by the head behind it"
    assert "a1.h3" in sources, "and written by the head in front of it"
    after = await call_tool_ok(client, "get_circuit", run_id=run_id, top=500, detail="detailed")
    assert {node["id"] for node in after["nodes"]} == {
        node["id"] for node in before["nodes"]
    } | held
    assert after["verdict"] == before["verdict"]
    record = json.loads((runs_dir / run_id / "circuit.json").read_text())
    assert record["graph"]["dictionaries"][0]["sae"] == "bundled"
    assert held <= {node["id"] for node in record["nodes"]}


async def ended(client: Client, run_id: str) -> dict[str, Any]:
    """A run's state once it is not at work."""
    with anyio.fail_after(600):
        while (state := await call_tool_ok(client, "run_status", run_id=run_id))[
            "status"
        ] == "running":
            await anyio.sleep(0.5)
    return state
