"""What every test gets: no network, settings of its own, and checked tensor shapes.

Fixtures give the checkout, an empty runs directory, and the trained models that are lent to it.
"""

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

# These settings must be made before torch, transformers or matplotlib is imported. A developer's
# own settings of Circuit Scout are removed.
for setting in list(os.environ):
    if setting.startswith("CIRCUIT_SCOUT_") and setting != "CIRCUIT_SCOUT_SHARED":
        del os.environ[setting]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", str(min(4, os.cpu_count() or 1)))

# From here on, the packages that handle tensors are imported with a checker. It checks the shapes
# in their signatures at each call, which makes a small model five to eight times slower. The slow
# tests, which repeat many times what the fast ones do, run without it (SHAPE_CHECKS=0).
SHAPE_CHECKS = os.environ.get("SHAPE_CHECKS", "1") != "0"
if loaded := [name for name in sys.modules if name.startswith(tuple(TENSOR_PACKAGES))]:
    raise RuntimeError(f"imported before the shape checker was installed: {loaded}")
# The server code is sent as source, so it must be imported without the checker.
import discovery.backends.remote.server_code  # noqa: E402, F401

if SHAPE_CHECKS:
    install_import_hook(TENSOR_PACKAGES, f"{shape_checks.__name__}.check_shapes")


def _refuse_network(connect: Any) -> Any:
    def guarded(self: socket.socket, address: Any) -> Any:
        is_internet = self.family in (socket.AF_INET, socket.AF_INET6)
        if is_internet and address[0] not in ("127.0.0.1", "::1", "localhost"):
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
    """Keep runs that a test gives no directory out of the developer's own one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIRCUIT_SCOUT_RUNS_DIR", str(tmp_path_factory.mktemp("runs")))
        yield


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty runs directory that this test's commands and subprocesses use."""
    directory = tmp_path / "runs"
    monkeypatch.setenv("CIRCUIT_SCOUT_RUNS_DIR", str(directory))
    return directory


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the directory of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Return the directory of trained models that are lent to the checkout.

    It is ../shared/models, or $CIRCUIT_SCOUT_SHARED/models. Without it the test is skipped.
    """
    models = SHARED / "models"
    if not models.is_dir():
        pytest.skip(
            "no shared models here: put them beside the checkout, "
            "or name their parent in CIRCUIT_SCOUT_SHARED"
        )
    return models
