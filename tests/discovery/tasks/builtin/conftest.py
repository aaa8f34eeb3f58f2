"""Tokenizers to hold the built-in behaviours against: one by words, GPT-2's, one by characters."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer

from discovery.tasks.pairs import Tokenizer

SHARED = Path(
    os.environ.get("CIRCUIT_SCOUT_SHARED", Path(__file__).resolve().parents[5] / "shared")
)


class WordTokenizer:
    """Every word with its leading space is a token, digits fall in pairs; a word outside `known` (where given) is <unk>."""

    def __init__(self, known: set[str] | None = None) -> None:
        self.known = known
        self.pieces = {"<unk>": 0}

    def encode(self, text: str) -> list[int]:
        """Ids in order of first sight."""
        ids = []
        for piece in re.findall(r" ?\d{1,2}| ?[A-Za-z]+| ?[^\sA-Za-z\d]", text):
            if self.known is not None and piece.strip() not in self.known:
                ids.append(0)
                continue
            ids.append(self.pieces.setdefault(piece, len(self.pieces)))
        return ids

    def decode(self, ids: list[int]) -> str:
        """The pieces joined."""
        known = list(self.pieces)
        return "".join(known[i] for i in ids)

    def has_unknown(self, text: str) -> bool:
        """Whether some piece is not known."""
        return 0 in self.encode(text)


class LetterTokenizer:
    """One token a character."""

    def encode(self, text: str) -> list[int]:
        """Code points."""
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        """The characters."""
        return "".join(chr(i) for i in ids)

    def has_unknown(self, text: str) -> bool:
        """Never: it knows all that it reads."""
        return False


class Gpt2Tokenizer:
    """GPT-2's byte-pair encoding from its two published files."""

    def __init__(self, folder: Path) -> None:
        self.inner = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))

    def encode(self, text: str) -> list[int]:
        """Ids."""
        return list(self.inner.encode(text).ids)

    def decode(self, ids: list[int]) -> str:
        """Text."""
        return str(self.inner.decode(ids))

    def has_unknown(self, text: str) -> bool:
        """Never: it knows all that it reads."""
        return False


@pytest.fixture
def by_words() -> WordTokenizer:
    """A tokenizer that knows every word."""
    return WordTokenizer()


@pytest.fixture
def knowing() -> Callable[[set[str]], Tokenizer]:
    """Makes a tokenizer that knows the given words, digits and marks only."""
    return WordTokenizer


@pytest.fixture
def by_letters() -> LetterTokenizer:
    """A tokenizer that knows no word."""
    return LetterTokenizer()


@pytest.fixture(scope="session")
def gpt2() -> Gpt2Tokenizer:
    """GPT-2's own, where its files are at hand."""
    folder = SHARED / "data" / "gpt2_bpe"
    if not (folder / "vocab.json").exists():
        pytest.skip(f"GPT-2's vocab.json and merges.txt are not in {folder}")
    return Gpt2Tokenizer(folder)


@pytest.fixture(params=["words", "gpt2"])
def tokenizer(request: pytest.FixtureRequest) -> WordTokenizer | Gpt2Tokenizer:
    """Each tokenizer that the behaviours must serve."""
    if request.param == "words":
        return WordTokenizer()
    served: Gpt2Tokenizer = request.getfixturevalue("gpt2")
    return served
