"""A prompt pair as a user writes it: one line of a task file, before any tokenizer has encoded it.

A behaviour is a set of clean prompts. Each has a corrupted prompt beside it that differs only in
the tokens that cause the behaviour, an answer that should follow, and an answer that should not.
The corrupted prompts replace tokens by other tokens of the same kind (symmetric token replacement:
Meng et al. 2022; Zhang & Nanda 2023, arXiv 2309.16042). This module needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

MAX_NAME_LENGTH = 100
"""The most characters of a template name or a label: results and records repeat these names."""

MAX_QUOTED_WORDS = 8
"""How many words a message names before it stops."""

Prompt = str | tuple[int, ...]
"""A text, or token ids that are used exactly as given."""

Answer = str | int | tuple[str | int, ...]
"""A text that adds exactly one token to the prompt, a token id, or a set of these."""


def shorten_repr(value: object) -> str:
    """Return the `repr` of a value, cut to a length that fits into an error message."""
    text = repr(value)
    return text if len(text) <= MAX_NAME_LENGTH else f"{text[:MAX_NAME_LENGTH]}…"


def list_unknown_words(tokenizer: Tokenizer, text: str) -> list[str]:
    """Return the words and marks of a text that a tokenizer does not know, each once.

    A tokenizer may know a word only at the start of a text, or only after a space. Such a word is
    listed if no other word explains the unknown token.
    """
    if not tokenizer.has_unknown(text):
        return []
    words = list(dict.fromkeys(re.findall(r"\w+|[^\w\s]", text)))
    alone = {word for word in words if tokenizer.has_unknown(word)}
    after_space = {word for word in words if tokenizer.has_unknown(f" {word}")}
    unknown = (alone & after_space) or (alone | after_space)
    return [word for word in words if word in unknown]


def quote_words(words: Sequence[str]) -> str:
    """Return the first of some words, each in quotes, as a message names them."""
    more = ", …" if len(words) > MAX_QUOTED_WORDS else ""
    return ", ".join(repr(word) for word in words[:MAX_QUOTED_WORDS]) + more


class Tokenizer(Protocol):
    """The part of a tokenizer that tasks use."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, with the tokenizer's default special tokens."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Return the text of `ids`, special tokens included."""
        ...

    def has_unknown(self, text: str) -> bool:
        """Whether some part of `text` becomes the tokenizer's token for unknown words."""
        ...


@dataclass(frozen=True, kw_only=True)
class PromptPair:
    """One prompt pair, as one line of a task file gives it.

    Attributes:
        clean: the prompt that shows the behaviour: text, or token ids that are used exactly as
            given.
        corrupted: the prompt that does not show it. It has as many tokens as `clean`.
        answer: what should follow `clean`: a text that adds exactly one token, a token id, or a set
            of these.
        wrong: what should not follow `clean`, in the same forms.
        template: the name of the wording that the pair comes from. The split can hold out whole
            templates.
        labels: token positions by name. Negative positions count from the end.
    """

    clean: Prompt
    corrupted: Prompt
    answer: Answer
    wrong: Answer
    template: str | None = None
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReferenceLine:
    """A line of a task file whose corrupted prompt only serves the means of mean ablation.

    Attributes:
        corrupted: the prompt.
        template: the name of the wording that it comes from.
        labels: token positions by name. Negative positions count from the end.
    """

    corrupted: Prompt
    template: str | None = None
    labels: Mapping[str, int] = field(default_factory=dict)


TaskLine = PromptPair | ReferenceLine
"""What one line of a task file holds."""


@dataclass(frozen=True, kw_only=True)
class MarkedPair:
    """A generated pair whose labels are still character positions, so that it suits any tokenizer.

    Attributes:
        clean: the prompt that shows the behaviour.
        corrupted: the prompt that does not show it.
        answer: the text, or the set of texts, that should follow `clean`.
        wrong: the text, or the set of texts, that should not.
        template: the name of the template that the pair was made from.
        marks: for each label, the index in `clean` just after the last character of its word.
        role: which way round `corrupted` has the roles that the corruption exchanges; one of the
            task's `roles`.
    """

    clean: str
    corrupted: str
    answer: str | tuple[str, ...]
    wrong: str | tuple[str, ...]
    template: str
    marks: Mapping[str, int]
    role: str = ""

    def with_token_labels(self, tokenizer: Tokenizer) -> PromptPair:
        """Return the pair with each mark replaced by the position of the token that ends there."""
        tokens = tokenizer.encode(self.clean)
        labels = {
            name: _count_shared_prefix(tokens, tokenizer.encode(self.clean[:end])) - 1
            for name, end in self.marks.items()
        }
        labels["end"] = -1
        return PromptPair(
            clean=self.clean,
            corrupted=self.corrupted,
            answer=self.answer,
            wrong=self.wrong,
            template=self.template,
            labels=labels,
        )


def _count_shared_prefix(first: list[int], second: list[int]) -> int:
    """Count the leading tokens that two encodings share. This ignores special tokens at the end."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
