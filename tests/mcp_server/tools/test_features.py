"""Features through the tool: from a dictionary in the models directory, on a prompt and on a task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mcp import Client

from tests.discovery.features.planted import random_module, saelens
from tests.mcp_server.place import TASK, call, make, refused

pytestmark = pytest.mark.anyio


async def test_features_of_a_prompt_and_of_a_task(models: Path, runs_dir: Path) -> None:
    saelens()
    place = models / "saes" / "layer1"
    random_module("standard", 88, 64, "blocks.1.hook_resid_pre").save_model(str(place))
    async with Client(make(models, runs_dir)) as client:
        await call(client, "load_model", model="induction")
        for given in ({"prompt": [0, 5, 6, 7, 5]}, {"task": TASK, "pairs": 8, "positions": [-1]}):
            found = await call(client, "sae_top_features", model_id="induction", sae="saes/layer1", k=3, **given)
            assert len(found["features"]) == 3
            assert found["sae"] == "saes/layer1"
            assert len(found["features"][0]["by_pair"]) == found["n"]
            assert len(json.dumps(found)) <= 10_000
        assert "POOR RECONSTRUCTION" in found["warnings"][0]


async def test_what_is_missing_is_said(client: Client) -> None:
    assert "of the bundled model, and does not belong" in await refused(client, "sae_top_features", model_id="induction", prompt=[0, 1])
    assert "one of prompt and task" in await refused(client, "sae_top_features", model_id="induction", sae="a/b")
    assert "There is no SAE directory" in await refused(client, "sae_top_features", model_id="induction", sae="../saes", prompt=[0, 1])
