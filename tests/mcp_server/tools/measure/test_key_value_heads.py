"""Shared key-value heads through the tools: named as what they are, and never taken for heads."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from safetensors.torch import load

import discovery.report
from benchmarks.random_models.tiny_models import GROUPED_LLAMAS, random_pairs, save_grouped_llama
from tests.mcp_server.servers import call_tool_error, call_tool_ok, make_server

pytestmark = pytest.mark.anyio

TASK = [
    {
        "clean": list(p.clean),
        "corrupted": list(p.corrupted),
        "answer": p.answer[0],
        "wrong": p.wrong[0],
    }
    for p in random_pairs((6, 6, 6), seed=3, same_end=False)
]
BACKENDS = ("transformerlens", "nnsight")


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("grouped")
    for name in GROUPED_LLAMAS:
        save_grouped_llama(directory / name, name)
    return directory


@pytest.fixture
async def client(models_dir: Path, tmp_path: Path) -> AsyncIterator[Client]:
    async with Client(make_server(models_dir, tmp_path)) as connected:
        yield connected


async def loaded(client: Client, name: str, backend: str = "transformerlens") -> str:
    result = await call_tool_ok(client, "load_model", model=name, backend=backend)
    return str(result["model_id"])


async def resource(client: Client, uri: str) -> Any:
    [content] = (await client.read_resource(uri)).contents
    return content


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", GROUPED_LLAMAS)
async def test_cells_of_k_and_v(
    client: Client,
    name: str,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heads, kv_heads = GROUPED_LLAMAS[name]
    each = heads // kv_heads
    drawings: list[tuple[list[str], str]] = []
    heatmap = discovery.report.draw_heatmap

    def draw_and_note(values: Any, rows: Any, columns: Any, **more: Any) -> bytes:
        drawings.append((list(columns), more["column_axis"]))
        return heatmap(values, rows, columns, **more)

    monkeypatch.setattr(discovery.report, "draw_heatmap", draw_and_note)
    model_id = await loaded(client, name, backend)
    result = await call_tool_ok(
        client, "patch_sweep", model_id=model_id, task=TASK, site="v", top=50
    )
    notes = [text for text in result["warnings"] if "key-value heads shared by query heads" in text]
    grid = json.loads((await resource(client, result["values"])).text)
    assert len(result["top"]) == 2 * kv_heads
    assert result["grid"]["shape"] == [2, kv_heads]
    if each == 1:
        assert notes == []
        assert result["grid"]["axes"] == grid["axes"] == ["layer", "head"]
        assert "kv_heads" not in grid
        assert drawings == [([str(head) for head in range(heads)], "head")]
        for cell in result["top"]:
            assert cell["node"] == f"a{cell['layer']}.h{cell['head']}"
            assert cell["label"] == f"L{cell['layer']}H{cell['head']}"
            assert (cell["kv_head"], cell["query_heads"]) == (None, [])
        return
    groups = [list(range(n * each, (n + 1) * each)) for n in range(kv_heads)]
    assert len(notes) == 1
    assert result["grid"]["axes"] == grid["axes"] == ["layer", "kv_head"]
    shares = [{"kv_head": n, "query_heads": group} for n, group in enumerate(groups)]
    assert grid["kv_heads"] == shares
    labels = [f"KV{n} = heads {group[0]}–{group[-1]}" for n, group in enumerate(groups)]
    assert drawings == [(labels, "key-value head")]
    for cell in result["top"]:
        assert cell["head"] is None
        assert cell["node"] == f"a{cell['layer']}.kv{cell['kv_head']}"
        assert cell["label"] == f"L{cell['layer']}KV{cell['kv_head']}"
        assert cell["query_heads"] == groups[cell["kv_head"]]


@pytest.mark.parametrize("tool", ["ablate_heads", "evaluate_circuit"])
async def test_a_cell_of_v_is_refused_where_heads_are_taken(client: Client, tool: str) -> None:
    """The very name that a sweep prints, and what it says to write instead."""
    model_id = await loaded(client, "llama_9_3")
    sweep = await call_tool_ok(client, "patch_sweep", model_id=model_id, task=TASK, site="v", top=1)
    [cell] = sweep["top"]
    text = await call_tool_error(client, tool, model_id=model_id, task=TASK, nodes=[cell["node"]])
    assert repr(cell["node"]) in text
    first, *_, last = cell["query_heads"]
    assert f"key-value head, shared by query heads {first} to {last}" in text
    nodes = [f"a{cell['layer']}.h{head}" for head in cell["query_heads"]]
    assert ", ".join(nodes) in text
    await call_tool_ok(
        client, "ablate_heads", model_id=model_id, task=TASK, nodes=nodes, controls=0
    )


@pytest.mark.parametrize("name", GROUPED_LLAMAS)
async def test_what_is_cached_of_k_and_v(client: Client, name: str) -> None:
    heads, kv_heads = GROUPED_LLAMAS[name]
    model_id = await loaded(client, name)
    prompt = [3, 4, 5]
    result = await call_tool_ok(
        client, "run_with_cache", model_id=model_id, prompt=prompt, sites=["k", "q"]
    )
    axes = {row["site"]: row["axes"] for row in result["sites"]}
    assert axes["q.0"] == ["pos", "head", "d_head"]
    assert axes["k.0"] == ["pos", "kv_head" if kv_heads < heads else "head", "d_head"]
    assert len(result["warnings"]) == (kv_heads < heads)
    packed = base64.b64decode((await resource(client, result["activations"])).blob)
    assert load(packed)["k.0"].shape == (3, kv_heads, 4)
    header = json.loads(packed[8 : 8 + int.from_bytes(packed[:8], "little")])
    assert header.get("__metadata__", {}).get("warnings") == (result["warnings"] or [None])[0]
