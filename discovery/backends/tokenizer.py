"""A model directory's tokenizer, as tasks need it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from discovery.errors import ModelError, first_line

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


class TextTokenizer:
    """A Hugging Face tokenizer behind the protocol that tasks need: its own default special tokens, nothing added."""

    def __init__(self, tokenizer: Any) -> None:
        self.wrapped = tokenizer

    def encode(self, text: str) -> list[int]:
        return list(self.wrapped(text)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        return str(self.wrapped.decode(ids))

    def holds_unknown(self, text: str) -> bool:
        unknown, written = self.wrapped.unk_token_id, self.wrapped.unk_token
        return unknown is not None and written not in text and unknown in self.encode(text)


def build_tokenizer(directory: Path) -> TextTokenizer | None:
    """The directory's tokenizer, or None where it has none (prompts are then token ids).

    Raises:
        ModelError: where tokenizer files are there but cannot be read.
    """
    from transformers import AutoTokenizer

    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (ValueError, KeyError, OSError, TypeError) as fault:
        raise ModelError(
            f"{directory.name}'s tokenizer cannot be read ({type(fault).__name__}).",
            "Repair it, or remove its files and give prompts as token ids.",
            detail=first_line(fault),
        ) from fault
    return TextTokenizer(tokenizer)
