"""A tokenizer and a model that are just enough for loading a task."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass
class ToyTokenizer:
    """A tokenizer in which every word with the space before it is a token.

    A word of more than seven characters (its space counts) is two tokens. Ids are given out in the
    order in which the tokens are first seen.
    """

    bos: bool = False

    def __post_init__(self) -> None:
        self.pieces = {"<s>": 0}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, after the id of <s> if `bos` is set."""
        words = re.findall(r" ?[^ ]+| ", text)
        pieces = [piece for word in words for piece in (word[:7], word[7:]) if piece]
        ids = [self.pieces.setdefault(piece, len(self.pieces)) for piece in pieces]
        return [0, *ids] if self.bos else ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of these ids."""
        return "".join(list(self.pieces)[i] for i in ids)

    def has_unknown(self, text: str) -> bool:
        """Return whether the text holds Xyzzy, the one word that this tokenizer does not know."""
        return "Xyzzy" in text


class UnknownAsOneToken(ToyTokenizer):
    """A tokenizer that has one token for all words that it does not know: Xyzzy and Plugh."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return super().encode(re.sub("Xyzzy|Plugh", "<unk>", text))

    def has_unknown(self, text: str) -> bool:
        """Return whether the text holds one of the two words."""
        return "Xyzzy" in text or "Plugh" in text


@dataclass(frozen=True)
class FakeModel:
    """The parts of a model that loading a task needs."""

    tokenizer: ToyTokenizer | None = field(default_factory=ToyTokenizer)
    d_vocab: int = 1000
    n_logits: int = 1000
    n_ctx: int = 20
