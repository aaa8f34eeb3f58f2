"""The tools on features over stdio, on the bundled model and its SAE.

What the tools say is compared with the same measurement in this process, and with what is on disk.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

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
from discovery.methods.features import Feature
from discovery.store import open_run
from tests.mcp_server.servers import (
    ERAS,
    call_tool_error,
    call_tool_ok,
    connect_over_stdio,
    wait_for_run,
)
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
    """A client of a server in a process of its own, with the bundled model loaded."""
    async with connect_over_stdio(models, runs_dir, getattr(request, "param", "auto")) as connected:
        await call_tool_ok(connected, "load_model", model="bundled")
        yield connected


@pytest.mark.parametrize("client", ERAS, indirect=True)
async def test_the_tools_use_the_bundled_sae(client: Client, model: Backend) -> None:
    task = load_task("ioi", model, pairs=32)
    result = await call_tool_ok(client, "sae_top_features", **END, k=3, by="ablation")
    direct = sae_top_features(model, task=task, positions=["end"], k=3, by="ablation", controls=19)
    assert (result["sae"], result["reads"], result["warnings"], result["n"]) == (
        "bundled",
        "resid_pre.2",
        [],
        32,
    )
    assert result["variance_explained"] == pytest.approx(
        direct.reconstruction.variance_explained, rel=1e-3
    )
    assert direct.reconstruction.share is not None
    assert (result["l0"], result["share_of_metric"]) == (
        16,
        pytest.approx(direct.reconstruction.share.mean, rel=1e-3),
    )
    assert [feature["index"] for feature in result["features"]] == [
        feature.index for feature in direct.features
    ]
    for shown, direct_feature in zip(result["features"], direct.features, strict=True):
        check_feature(shown, direct_feature)
    first = result["features"][0]
    assert (first["index"], first["control_p"], first["link"]) == (60, 0.05, None)

    await check_edit(client, model, first["ablation"]["mean"])
    read = await call_tool_ok(client, "sae_examples", model_id="bundled", features=[60], text="ioi")
    [card] = feature_examples(model, None, "ioi", [60], cache=False).features
    assert read["features"][0]["density"] == pytest.approx(card.density, rel=1e-2)
    assert read["features"][0]["top"][0]["text"].endswith("« to»")
    prompt = await call_tool_ok(
        client, "sae_top_features", model_id="bundled", prompt=list(task.pairs[0].clean), k=1
    )
    assert prompt["answer"] == model.tokenizer.decode(list(task.pairs[0].answer[:1]))  # type: ignore[union-attr]
    assert prompt["wrong"] not in (None, prompt["answer"])


def check_feature(shown: dict[str, Any], direct_feature: Feature) -> None:
    """What the tool shows of a feature is what the library measures."""
    assert direct_feature.attribution is not None
    for name, interval in (
        ("activation", direct_feature.activation),
        ("attribution", direct_feature.attribution),
        ("ablation", direct_feature.ablation),
    ):
        assert shown[name] == pytest.approx(
            {"mean": interval.mean, "low": interval.low, "high": interval.high},
            rel=1e-3,
            abs=1e-3,
        )
    assert shown["fires_on"][0]["text"] == direct_feature.tokens[0].text == "to"
    assert shown["promotes"][0]["text"] == direct_feature.direct.promoted[0].text
    assert shown["share_unrelated"] == pytest.approx(
        direct_feature.consistency.unrelated.share, abs=1e-3
    )


async def check_edit(client: Client, model: Backend, ablation: float) -> None:
    """Setting a feature to 0 has the opposite of the effect that its ablation is reported with."""
    task = load_task("ioi", model, pairs=32)
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
        == pytest.approx(-ablation, rel=1e-3)
    )
    assert edited["on_metric"]["control_p"] == 0.05
    assert edited["on_text"]["clean"]
    assert "not finite" in await call_tool_error(
        client, "edit_features", **END, features={"60": 1e300}
    )


async def test_a_training_in_the_background_is_followed_and_then_read(
    client: Client, model: Backend, runs_dir: Path
) -> None:
    started = await call_tool_ok(
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
    run_id = started["run_id"]
    assert started["status"] == "running"
    state = await wait_for_run(client, run_id, 600)
    assert [state["status"], state["stages"][-1]["stage"]] == ["completed", "scores"]
    training = await call_tool_ok(client, "train_sae", run_id=run_id)
    record = open_run(runs_dir, run_id).record
    assert record.scores is not None
    assert training["scores"]["variance_explained"] == pytest.approx(
        record.scores["variance_explained"], rel=1e-3
    )
    assert saelens().SAE.load_from_disk(runs_dir / run_id / "sae").cfg.d_sae == 64
    [shown] = (await client.read_resource(f"scout://runs/{run_id}/run.json")).contents
    assert json.loads(shown.text)["kind"] == "sae"

    await check_trained_features(client, model, runs_dir, run_id)


async def check_trained_features(
    client: Client, model: Backend, runs_dir: Path, run_id: str
) -> None:
    """The tools use the SAE of the training as the library does."""
    arguments: dict[str, Any] = {"model_id": "bundled", "sae": run_id}
    top = await call_tool_ok(client, "sae_top_features", **arguments, task="ioi", pairs=8, k=2)
    direct = sae_top_features(
        model,
        load_sae(run_id, model, runs_dir=runs_dir),
        task=load_task("ioi", model, pairs=8),
        k=2,
    )
    assert (top["sae"], top["reads"], top["total"]) == (run_id, "resid_pre.1", 64)
    assert [feature["index"] for feature in top["features"]] == [
        feature.index for feature in direct.features
    ]
    feature = top["features"][0]["index"]
    edited = await call_tool_ok(
        client, "edit_features", **arguments, task="ioi", pairs=8, features={str(feature): 0}
    )
    assert edited["on_metric"]["effect"]["mean"] == pytest.approx(
        -top["features"][0]["ablation"]["mean"], rel=1e-2, abs=1e-3
    )
    read = await call_tool_ok(client, "sae_examples", **arguments, text="ioi", features=[feature])
    assert (read["sae"], read["features"][0]["index"]) == (run_id, feature)


@pytest.mark.timeout(900)
async def test_features_beside_the_circuit_of_a_discovery(client: Client, runs_dir: Path) -> None:
    started = await call_tool_ok(
        client, "discover_circuit", model_id="bundled", task="ioi", pairs=96, wait_seconds=0
    )
    run_id = started["run_id"]
    assert (await wait_for_run(client, run_id, 600))["status"] == "completed"
    before = await call_tool_ok(client, "get_circuit", run_id=run_id)
    result = await call_tool_ok(client, "circuit_features", run_id=run_id, model_id="bundled")
    assert (result["sae"], result["verdict"], result["warnings"]) == (
        "bundled",
        before["verdict"],
        [],
    )
    assert result["variance_explained"] > 0.9
    assert result["share_of_metric"] == pytest.approx(1, abs=0.1)
    holding = {feature["id"] for feature in result["candidates"] if feature["holds"]}
    assert holding
    assert all(
        abs(feature["noising"]) >= 0.01 and feature["control_p"] == 0.05
        for feature in result["candidates"]
        if feature["holds"]
    )
    assert all(feature["why"] for feature in result["candidates"] if not feature["holds"])
    sources = {edge["source"] for edge in result["edges"]}
    targets = {edge["target"] for edge in result["edges"]}
    assert "a2.h0" in targets, "a later head reads a feature"
    assert "a1.h3" in sources, "an earlier head writes a feature"
    after = await call_tool_ok(client, "get_circuit", run_id=run_id, top=500, detail="detailed")
    assert {node["id"] for node in after["nodes"]} == {
        node["id"] for node in before["nodes"]
    } | holding
    assert after["verdict"] == before["verdict"]
    record = json.loads((runs_dir / run_id / "circuit.json").read_text())
    assert record["graph"]["dictionaries"][0]["sae"] == "bundled"
    assert holding <= {node["id"] for node in record["nodes"]}
