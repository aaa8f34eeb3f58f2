"""Fixtures for every test of the `discovery` package: tiny models, and one thread for torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.random_models.tiny_models import TinyModels


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Build and load each tiny model at most once in a session."""
    return TinyModels(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Run torch on one thread, because tiny models gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
