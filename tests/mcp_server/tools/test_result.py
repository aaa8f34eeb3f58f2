"""Results that are cut: the most rows that fit, the ones that matter, and word of how to see the rest."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, cast

import pytest
from mcp import Client

from discovery.methods.statistics import Interval
from discovery.store import ModelSource, create_run
from mcp_server.server.server import CircuitScoutServer
from mcp_server.tools.features import sae_top_features
from mcp_server.tools.result import DETAILED_LIMIT, Listing, Result, fit_to_limit
from tests.mcp_server.servers import INDUCTION_TASK, call_tool_error, call_tool_ok, make_server
from tests.tiny_saes import random_module, saelens

pytestmark = pytest.mark.anyio


class ManyRows(Listing):
    shortened_fields: ClassVar[tuple[str, ...]] = ("names", "rows")
    narrowing_hint: ClassVar[str] = "Ask for fewer."
    rows: list[str]
    names: tuple[str, ...] = ()


def test_as_many_rows_as_fit_are_kept() -> None:
    rows = [f"{n:04}{'é' * 10}" for n in range(1000)]
    facts = fit_to_limit(ManyRows(rows=rows, total=1000), 10_000)
    assert (facts["truncated"], facts["narrow"]) == (True, "Ask for fewer.")
    kept = len(facts["rows"])
    assert facts["rows"] == rows[:kept]
    assert len(json.dumps(facts)) <= 10_000 < len(json.dumps(facts | {"rows": rows[: kept + 1]}))
    whole = fit_to_limit(ManyRows(rows=rows[:kept], total=kept), 10_000)
    assert (whole["truncated"], whole["narrow"], len(whole["rows"])) == (False, None, kept)


def test_a_list_loses_its_last_ten_rows_only_after_the_others() -> None:
    facts = fit_to_limit(ManyRows(rows=["x" * 90] * 50, names=("y" * 40,) * 2000, total=50), 10_000)
    assert len(facts["names"]) >= 10
    assert len(facts["rows"]) == 50
    facts = fit_to_limit(
        ManyRows(rows=["x" * 90] * 500, names=("y" * 40,) * 2000, total=50), 10_000
    )
    assert len(facts["names"]) == 10
    assert len(facts["rows"]) > 90


def test_the_newest_are_kept_of_what_ends_with_them() -> None:
    class Events(ManyRows):
        keeps_newest: ClassVar[bool] = True

    assert (
        fit_to_limit(Events(rows=[str(n) for n in range(5000)], total=5000), 10_000)["rows"][-1]
        == "4999"
    )


@pytest.mark.parametrize("text", ["x" * 300_000, "\0" * 100_000])
def test_nothing_exceeds_the_last_bound(text: str) -> None:
    class Told(Result):
        said: str
        inner: dict[str, Any]

    facts = fit_to_limit(Told(said=text, inner={"a": [[text] * 50] * 50, "b": 1}), 10_000)
    assert len(json.dumps(facts)) <= DETAILED_LIMIT
    assert facts["said"].startswith(text[:39])
    assert facts["inner"]["b"] == 1
    listed = fit_to_limit(ManyRows(rows=[], narrow=None, total=1, names=(text,)), 10_000)
    assert listed["truncated"]
    assert listed["narrow"]


async def test_a_sweep_gives_the_most_cells_that_fit(server: CircuitScoutServer) -> None:
    given = {
        "model_id": "bundled",
        "task": "ioi",
        "site": "head_out_by_position",
        "top": 500,
        "pairs": 2,
    }
    async with Client(server) as client:
        await call_tool_ok(client, "load_model", model="bundled")
        found = await call_tool_ok(client, "patch_sweep", **given)
        more = await call_tool_ok(client, "patch_sweep", **given, detail="detailed")
    assert 9_800 <= len(json.dumps(found)) <= 10_000
    assert found["truncated"]
    assert "detail='detailed'" in found["narrow"]
    assert len(found["top"]) < len(more["top"]) == min(500, more["total"])
    assert found["top"] == more["top"][: len(found["top"])]


async def test_single_ablations_stand_by_what_they_change(client: Client) -> None:
    nodes = [f"a{layer}.h{head}" for layer in range(2) for head in range(4)]
    found = await call_tool_ok(
        client,
        "ablate_heads",
        model_id="induction",
        task=INDUCTION_TASK,
        nodes=nodes,
        per_node=True,
    )
    changes = [abs(row["change"]) for row in found["per_node"]]
    assert changes == sorted(changes, reverse=True)
    assert {row["node"] for row in found["per_node"][:2]} == {"a0.h2", "a1.h1"}


async def test_all_features_of_the_defaults_are_listed(models: Path, runs_dir: Path) -> None:
    saelens()
    random_module("standard", 88, 64, "blocks.1.hook_resid_pre").save_model(
        str(models / "saes" / "wide")
    )
    async with Client(make_server(models, runs_dir)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        given = {"model_id": "induction", "sae": "saes/wide", "task": INDUCTION_TASK}
        found = await call_tool_ok(client, "sae_top_features", **given)
        assert len(found["features"]) == 10
        assert (found["total"], found["truncated"]) == (64, True)
        assert "Raise k" in found["narrow"]
        assert found["n"] == 32
        assert (
            {len(feature["by_pair"]) for feature in found["features"]}
            == {found["by_pair_of"]}
            == {8}
        )
        assert len(json.dumps(found)) <= 10_000
        more = await call_tool_ok(
            client, "sae_top_features", **given, pairs=40, k=3, detail="detailed"
        )
        assert (more["by_pair_of"], len(more["features"][0]["by_pair"]), more["n"]) == (40, 40, 40)
        assert any("40 of" in warning for warning in more["warnings"])


@pytest.mark.parametrize("detail", ["concise", "detailed"])
def test_ten_features_fit_where_tokens_are_words_and_have_pages(
    detail: Literal["concise", "detailed"],
) -> None:
    span = Interval(-1.234, -1.334, -1.134)
    fired = SimpleNamespace(token=12345, text=" Mackerel", largest=12.34, logit=-12.34)
    seen = SimpleNamespace(share=0.123)
    feature = SimpleNamespace(
        index=12345,
        activation=span,
        attribution=span,
        ablation=span,
        control=SimpleNamespace(p=0.123),
        consistency=SimpleNamespace(clean=seen, corrupted=seen, unrelated=seen),
        tokens=[fired] * 9,
        direct=SimpleNamespace(promoted=[fired] * 9, suppressed=[fired] * 9),
        by_pair=[12.34] * 300,
        link="https://www.neuronpedia.org/gpt2-small/8-res-jb/12345",
    )
    row = sae_top_features._feature_view(cast(Any, feature), detail)
    assert 10 * len(json.dumps(row.model_dump())) <= (8_800 if detail == "concise" else 38_000)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, list[str]]:
    """Runs whose ids do not say when they began; the ids, the newest first."""
    ids = []
    for n in range(90):
        with create_run(tmp_path, "ioi", ModelSource(name="a-model-of-some-length"), {}) as run:
            path = run.path / "run.json"
        path.write_text(
            json.dumps(
                json.loads(path.read_text())
                | {"created": f"2026-01-{1 + n % 28:02}T{n // 28:02}:00:00.000Z"}
            )
        )
        ids.append((n % 28, n // 28, path.parent.name))
    return tmp_path, [name for *_, name in sorted(ids, reverse=True)]


async def test_runs_are_listed_page_by_page(runs: tuple[Path, list[str]], models: Path) -> None:
    place, newest = runs
    async with Client(make_server(models, place)) as client:
        seen: list[str] = []
        given: dict[str, Any] = {"top": 200}
        while True:
            found = await call_tool_ok(client, "list_runs", **given)
            page = [run["run_id"] for run in found["runs"]]
            seen += page
            assert found["total"] == 90
            assert len(json.dumps(found)) <= 10_000
            if not found["truncated"]:
                break
            assert found["narrow"].startswith(f'list_runs(before="{page[-1]}")')
            assert len(page) > 20
            given["before"] = page[-1]
        assert seen == newest
        first = await call_tool_ok(client, "list_runs")
        assert [run["run_id"] for run in first["runs"]] == newest[:20]
        assert first["narrow"].startswith(f'list_runs(before="{newest[19]}")')
        assert "no run 'nobody'" in await call_tool_error(client, "list_runs", before="nobody")


async def test_many_models_are_cut_with_a_word(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for n in range(300):
        place = models / f"model-with-a-name-of-some-length-{n:03}"
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")
        (place / "model.safetensors").write_bytes(b"")
    server: CircuitScoutServer = make_server(models, tmp_path / "runs")
    async with Client(server) as client:
        found = await call_tool_ok(client, "list_models")
    assert found["truncated"] == (len(found["loadable"]) < 301)
    assert found["truncated"]
    assert "load_model" in found["narrow"]
