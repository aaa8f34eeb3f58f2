"""Tiny models of this session, and the backends that must keep the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.random_models.tiny_models import TinyModels, load_plain_module
from discovery.backends.loading.checks import ReferenceLogits, run_reference
from discovery.sites import BackendName


@pytest.fixture(scope="session", params=["transformerlens", "nnsight"])
def backend(request: pytest.FixtureRequest) -> BackendName:
    """Each engine in turn."""
    name: BackendName = request.param
    return name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a test saves a model of its own."""
    return tmp_path / "model"


@pytest.fixture
def expected(tiny_models: TinyModels) -> ReferenceLogits:
    """What the plain GPT-2 gives on the probe."""
    info = tiny_models.load("gpt2").info
    return run_reference(
        load_plain_module(tiny_models.path("gpt2")), info.d_vocab, info.n_ctx, "cpu"
    )
