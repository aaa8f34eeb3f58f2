"""Tiny GGUF models, each written once, and a cache of their own for their copies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.random_models.gguf_files import save_gguf_source, write_gguf


@pytest.fixture(scope="session")
def gguf_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that gives a tiny GGUF model of an architecture and quantisation."""
    folder = tmp_path_factory.mktemp("gguf")

    def get(architecture: str = "llama", quantisation: str = "Q8_0") -> Path:
        source = folder / f"{architecture}-source"
        if not source.is_dir():
            save_gguf_source(source, architecture)
        path = folder / f"{architecture}-{quantisation}" / f"{architecture}.{quantisation}.gguf"
        if not path.is_file():
            path.parent.mkdir()
            write_gguf(source, path, architecture, quantisation, tokenizer="gpt2")
        return path

    return get


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep copies in a directory of the test, and return it."""
    monkeypatch.setenv("CIRCUIT_SCOUT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"
