"""Tokenizers for the built-in behaviours: one token a word, GPT-2's, and one token a character."""

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
    """A tokenizer with one token for each word and its leading space, and for each pair of digits.

    Args:
        known: the only words that are not <unk>. If None, every word is known.
    """

    pattern = r" ?\d{1,2}| ?[A-Za-z]+| ?[^\sA-Za-z\d]"

    def __init__(self, known: set[str] | None = None) -> None:
        self.known = known
        self.pieces = {"<unk>": 0}

    def encode(self, text: str) -> list[int]:
        """Return ids that count the pieces in the order in which they were first encoded."""
        ids = []
        for piece in re.findall(self.pattern, text):
            if self.known is not None and piece.strip() not in self.known:
                ids.append(0)
                continue
            ids.append(self.pieces.setdefault(piece, len(self.pieces)))
        return ids

    def decode(self, ids: list[int]) -> str:
        """Join the pieces."""
        pieces = list(self.pieces)
        return "".join(pieces[i] for i in ids)

    def has_unknown(self, text: str) -> bool:
        """Whether some piece of the text is <unk>."""
        return 0 in self.encode(text)


class DigitTokenizer(WordTokenizer):
    """A tokenizer with one token for each word with its space, and for each digit."""

    pattern = r"\d| (?=\d)| ?[A-Za-z]+| ?[^\sA-Za-z\d]"


class LetterTokenizer:
    """A tokenizer with one token for each character, so that no word is one token."""

    def encode(self, text: str) -> list[int]:
        """Return the code points."""
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        """Return the characters."""
        return "".join(chr(i) for i in ids)

    def has_unknown(self, text: str) -> bool:
        """Return False: every text can be encoded."""
        return False


class Gpt2Tokenizer:
    """GPT-2's byte-pair encoding, read from its two published files."""

    def __init__(self, folder: Path) -> None:
        self.inner = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))

    def encode(self, text: str) -> list[int]:
        """Return the token ids."""
        return list(self.inner.encode(text).ids)

    def decode(self, ids: list[int]) -> str:
        """Return the text."""
        return str(self.inner.decode(ids))

    def has_unknown(self, text: str) -> bool:
        """Return False: every text can be encoded."""
        return False


@pytest.fixture
def by_words() -> WordTokenizer:
    """A tokenizer that knows every word."""
    return WordTokenizer()


@pytest.fixture
def tokenizer_that_knows() -> Callable[[set[str]], Tokenizer]:
    """A function that makes a tokenizer which knows only the given words, digits and marks."""
    return WordTokenizer


@pytest.fixture
def by_digits() -> DigitTokenizer:
    """A tokenizer that knows every word and splits every number."""
    return DigitTokenizer()


@pytest.fixture
def by_letters() -> LetterTokenizer:
    """A tokenizer for which no word is one token."""
    return LetterTokenizer()


@pytest.fixture(scope="session")
def gpt2() -> Gpt2Tokenizer:
    """GPT-2's own tokenizer. Tests that need it are skipped if its files are not there."""
    folder = SHARED / "data" / "gpt2_bpe"
    if not (folder / "vocab.json").exists():
        pytest.skip(f"GPT-2's vocab.json and merges.txt are not in {folder}")
    return Gpt2Tokenizer(folder)


@pytest.fixture(params=["words", "gpt2"])
def tokenizer(request: pytest.FixtureRequest) -> WordTokenizer | Gpt2Tokenizer:
    """Each tokenizer that the behaviours must support."""
    if request.param == "words":
        return WordTokenizer()
    gpt2_tokenizer: Gpt2Tokenizer = request.getfixturevalue("gpt2")
    return gpt2_tokenizer
