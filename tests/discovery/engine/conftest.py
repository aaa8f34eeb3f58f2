"""Tiny models of this session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.tiny_models import TinyModels


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Tiny models, built and loaded once."""
    return TinyModels(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
