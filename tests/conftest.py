"""What every test gets: no network, settings of its own, written shapes that are checked, and models to load."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

from tests import shape_checks

ROOT = Path(__file__).resolve().parent.parent
TENSOR_PACKAGES = [
    f"discovery.{name}"
    for name in (
        "metrics",
        "interventions",
        "backends",
        "features",
        "engine",
        "methods",
        "evaluation",
    )
]
SHARED = Path(os.environ.get("CIRCUIT_SCOUT_SHARED") or ROOT.parent / "shared")

# Before torch, transformers or matplotlib is imported by anyone.
for setting in [
    name
    for name in os.environ
    if name.startswith("CIRCUIT_SCOUT_") and name != "CIRCUIT_SCOUT_SHARED"
]:
    del os.environ[setting]  # a developer's own
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", str(min(4, os.cpu_count() or 1)))

# From here on, importing the half of discovery that handles tensors checks the shapes in its signatures at each call. That makes a
# small model five to eight times slower: the slow tests, which repeat what the fast ones do many times over, go without (SHAPE_CHECKS=0).
SHAPE_CHECKS = os.environ.get("SHAPE_CHECKS", "1") != "0"
if loaded := [name for name in sys.modules if name.startswith(tuple(TENSOR_PACKAGES))]:
    raise RuntimeError(f"imported before the shape checker was installed: {loaded}")
import discovery.backends.remote.server_code  # noqa: E402, F401  # what goes to a server goes as source, which a checker around it is not

if SHAPE_CHECKS:
    install_import_hook(TENSOR_PACKAGES, f"{shape_checks.__name__}.check_shapes")


def _refuse_network(connect: Any) -> Any:
    def guarded(self: socket.socket, address: Any) -> Any:
        local = self.family not in (socket.AF_INET, socket.AF_INET6) or address[0] in (
            "127.0.0.1",
            "::1",
            "localhost",
        )
        if not local:
            self.close()
            raise RuntimeError(f"a test reached for the network: {address!r}")
        return connect(self, address)

    return guarded


@pytest.fixture(autouse=True, scope="session")
def _offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _refuse_network(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", _refuse_network(socket.socket.connect_ex))
        yield


@pytest.fixture(autouse=True, scope="session")
def _temporary_runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs that a test forgets to place do not land in the developer's own directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIRCUIT_SCOUT_RUNS_DIR", str(tmp_path_factory.mktemp("runs")))
        yield


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty runs directory, which this test's commands and its subprocesses use."""
    place = tmp_path / "runs"
    monkeypatch.setenv("CIRCUIT_SCOUT_RUNS_DIR", str(place))
    return place


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Trained models lent to the checkout: ../shared/models, or $CIRCUIT_SCOUT_SHARED/models; skips where there are none."""
    models = SHARED / "models"
    if not models.is_dir():
        pytest.skip(
            "no shared models here: put them beside the checkout, or name their parent in CIRCUIT_SCOUT_SHARED"
        )
    return models
