"""sae_top_features: how many features fit into a result."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
from mcp import Client

from discovery.methods.statistics import Interval
from mcp_server.tools.features import sae_top_features
from tests.mcp_server.servers import (
    INDUCTION_TASK,
    call_tool_ok,
    make_server,
)
from tests.tiny_saes import random_module, saelens

pytestmark = pytest.mark.anyio


async def test_all_features_of_the_defaults_are_listed(models: Path, runs_dir: Path) -> None:
    saelens()
    random_module("standard", 88, 64, "blocks.1.hook_resid_pre").save_model(
        str(models / "saes" / "wide")
    )
    async with Client(make_server(models, runs_dir)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        arguments = {"model_id": "induction", "sae": "saes/wide", "task": INDUCTION_TASK}
        result = await call_tool_ok(client, "sae_top_features", **arguments)
        assert len(result["features"]) == 10
        assert (result["total"], result["truncated"]) == (64, True)
        assert "Raise k" in result["narrow"]
        assert result["n"] == 32
        assert (
            {len(feature["by_pair"]) for feature in result["features"]}
            == {result["by_pair_of"]}
            == {8}
        )
        assert len(json.dumps(result)) <= 10_000
        more = await call_tool_ok(
            client, "sae_top_features", **arguments, pairs=40, k=3, detail="detailed"
        )
        assert (more["by_pair_of"], len(more["features"][0]["by_pair"]), more["n"]) == (40, 40, 40)
        assert any("40 of" in warning for warning in more["warnings"])


@pytest.mark.parametrize("detail", ["concise", "detailed"])
def test_ten_features_fit_where_tokens_are_words_and_have_pages(
    detail: Literal["concise", "detailed"],
) -> None:
    span = Interval(-1.234, -1.334, -1.134)
    token = SimpleNamespace(token=12345, text=" Mackerel", largest=12.34, logit=-12.34)
    activity = SimpleNamespace(share=0.123)
    feature = SimpleNamespace(
        index=12345,
        activation=span,
        attribution=span,
        ablation=span,
        control=SimpleNamespace(p=0.123),
        consistency=SimpleNamespace(clean=activity, corrupted=activity, unrelated=activity),
        tokens=[token] * 9,
        direct=SimpleNamespace(promoted=[token] * 9, suppressed=[token] * 9),
        by_pair=[12.34] * 300,
        link="https://www.neuronpedia.org/gpt2-small/8-res-jb/12345",
    )
    row = sae_top_features._feature_view(cast(Any, feature), detail)
    assert 10 * len(json.dumps(row.model_dump())) <= (8_800 if detail == "concise" else 38_000)
