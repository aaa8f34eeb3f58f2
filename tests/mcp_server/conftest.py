"""Servers with models whose circuits are known."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from mcp import Client

from benchmarks.known_circuits.hand_built import build_known_circuit
from mcp_server.server.server import CircuitScoutServer
from tests.mcp_server.servers import make_server


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory."""
    directory = tmp_path_factory.mktemp("models")
    for name in ("induction", "or_mlp"):
        build_known_circuit(name).save(directory / name)
    return directory


@pytest.fixture(scope="session")
def shared_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served-runs")


@pytest.fixture(scope="session")
def server(models: Path, shared_runs: Path) -> CircuitScoutServer:
    """One server for the tests that only measure."""
    return make_server(models, shared_runs)


@pytest.fixture
async def client(server: CircuitScoutServer) -> AsyncIterator[Client]:
    """Connected, with the induction model loaded."""
    async with Client(server) as connected:
        await connected.call_tool("load_model", {"model": "induction"})
        yield connected
