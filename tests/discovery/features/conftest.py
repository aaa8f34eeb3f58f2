"""Tiny models of this session."""

from __future__ import annotations

import pytest

from tests.tiny_models import TinyModels


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Built and loaded once."""
    return TinyModels(tmp_path_factory.mktemp("models"))
