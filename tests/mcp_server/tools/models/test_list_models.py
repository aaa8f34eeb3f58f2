"""list_models: a long list is cut, and says so; GGUF files are listed and can be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from mcp import Client

from benchmarks.random_models.gguf_files import save_gguf_source, write_gguf
from mcp_server.server.server import CircuitScoutServer
from tests.mcp_server.servers import (
    call_tool_ok,
    make_server,
)

pytestmark = pytest.mark.anyio


async def test_many_models_are_cut_with_a_word(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for n in range(300):
        directory = models / f"model-with-a-name-of-some-length-{n:03}"
        directory.mkdir(parents=True)
        (directory / "config.json").write_text("{}")
        (directory / "model.safetensors").write_bytes(b"")
    server: CircuitScoutServer = make_server(models, tmp_path / "runs")
    async with Client(server) as client:
        result = await call_tool_ok(client, "list_models")
    assert result["truncated"] == (len(result["loadable"]) < 301)
    assert result["truncated"]
    assert "load_model" in result["narrow"]


async def test_a_listed_gguf_file_can_be_described_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIRCUIT_SCOUT_CACHE_DIR", str(tmp_path / "cache"))
    models = tmp_path / "models"
    models.mkdir()
    source = save_gguf_source(tmp_path / "source", "llama")
    write_gguf(source, models / "tiny.gguf", "llama", "Q4_0", tokenizer="gpt2")
    async with Client(make_server(models, tmp_path / "runs")) as client:
        loadable = (await call_tool_ok(client, "list_models"))["loadable"]
        assert [row["model"] for row in loadable] == ["bundled", "tiny.gguf"]
        outline = await call_tool_ok(client, "load_model", model="tiny.gguf", load=False)
        assert not (tmp_path / "cache").exists()
        result = await call_tool_ok(client, "load_model", model="tiny.gguf")
    assert outline["model_id"] == result["model_id"] == "tiny.gguf"
    assert outline["n_params"] == result["n_params"]
    assert result["loaded"]
    assert result["tokenizer"]
    assert len(result["fingerprint"]) == 64
