"""list_models: a long list is cut, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from mcp import Client

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
