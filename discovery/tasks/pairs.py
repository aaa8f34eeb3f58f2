"""A prompt pair as it is written: one line of a task file, before any tokenizer has seen it.

A behaviour is a set of clean prompts, each beside a corrupted one that differs where the behaviour
lives, with the token that should follow and one that should not (Meng et al. 2022; Zhang & Nanda 2023,
arXiv 2309.16042, on symmetric token replacement). Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

MAX_NAME_LENGTH = 100  # characters of a template or label: results and records name them
Prompt = str | tuple[int, ...]
Answer = str | int | tuple[str | int, ...]


def shorten_repr(value: object) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= MAX_NAME_LENGTH else f"{text[:MAX_NAME_LENGTH]}…"


class Tokenizer(Protocol):
    """The little that a task needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` with the tokenizer's default special tokens."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, special tokens included."""
        ...

    def has_unknown(self, text: str) -> bool:
        """Whether some of `text` becomes the token for what the tokenizer does not know."""
        ...


@dataclass(frozen=True)
class PromptPair:
    """One line of a task file.

    Attributes:
        clean: the prompt that shows the behaviour: text, or token ids used exactly as given.
        corrupted: the prompt that does not; as many tokens as `clean`.
        answer: what should follow `clean`: a text that adds exactly one token, a token id, or a set of these.
        wrong: what should not; same forms.
        template: which wording the pair comes from; whole templates can be held out.
        labels: named token positions, negative ones counted from the end.
    """

    clean: Prompt
    corrupted: Prompt
    answer: Answer
    wrong: Answer
    template: str | None = None
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class MarkedPair:
    """A generated pair whose labels are still places in the text, so that it serves any tokenizer.

    Attributes:
        marks: label -> index one past the last character, in `clean`, of the word that it names.
    """

    clean: str
    corrupted: str
    answer: str | tuple[str, ...]
    wrong: str | tuple[str, ...]
    template: str
    marks: Mapping[str, int]

    def with_token_labels(self, tokenizer: Tokenizer) -> PromptPair:
        """The pair with each mark turned into the position of the token that ends there."""
        whole = tokenizer.encode(self.clean)
        labels = {
            name: _count_shared_prefix(whole, tokenizer.encode(self.clean[:end])) - 1
            for name, end in self.marks.items()
        }
        labels["end"] = -1
        return PromptPair(
            self.clean, self.corrupted, self.answer, self.wrong, self.template, labels
        )


def _count_shared_prefix(a: list[int], b: list[int]) -> int:
    """How many leading tokens two encodings share (trailing special tokens fall away)."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count
