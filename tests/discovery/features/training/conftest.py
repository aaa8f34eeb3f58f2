"""Tiny models of this session, and texts for them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.random_models.tiny_models import CONTEXT, VOCAB, save_hugging_face, save_tokenizer

WORDS = ("the", "cat", "dog", "sees", "fish", "bones")


@pytest.fixture(scope="session")
def word_model(tmp_path_factory: pytest.TempPathFactory):
    """A tiny GPT-2 that reads six words."""
    from discovery import load_model

    folder = tmp_path_factory.mktemp("reader") / "gpt2"
    return load_model(save_tokenizer(save_hugging_face(folder, "gpt2"), WORDS), device="cpu")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred documents."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "animals.txt"
    path.write_text(
        "".join(" ".join(rng.choices(WORDS, k=rng.randint(3, 9))) + "\n" for _ in range(200))
    )
    return path


def token_rows(count: int = 300, seed: int = 0) -> list[tuple[int, ...]]:
    """Rows of random tokens of the tiny models."""
    rng = random.Random(seed)
    return [
        tuple(rng.randrange(VOCAB) for _ in range(rng.randint(4, CONTEXT))) for _ in range(count)
    ]
