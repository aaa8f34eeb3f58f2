"""Tiny models of this session."""

from __future__ import annotations

import pytest

from tests.tiny_models import Shelf


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Built and loaded once."""
    return Shelf(tmp_path_factory.mktemp("models"))
