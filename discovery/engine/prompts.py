"""The pairs of a task as padded tensors on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from discovery.metrics import PAD_TOKEN
from discovery.sites import Direction
from discovery.tasks.task import EncodedPair

Side = Literal["clean", "corrupted"]
SIDES: tuple[Side, ...] = get_args(Side)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Pairs as right-padded tensors. In a causal model, no position sees the padding behind it.

    Attributes:
        pairs: the pairs in their order.
        clean: the token ids of the clean prompts, padded with token 0.
        corrupted: the token ids of the corrupted prompts, padded with token 0.
        length: the number of tokens of each side of a pair.
        first_difference: the first position at which the two sides differ.
        answer: the token ids of the answers, padded with -1.
        wrong: the token ids of the wrong answers, padded with -1.
    """

    pairs: tuple[EncodedPair, ...]
    clean: Int[Tensor, "pair pos"]
    corrupted: Int[Tensor, "pair pos"]
    length: Int[Tensor, "pair"]
    first_difference: Int[Tensor, "pair"]
    answer: Int[Tensor, "pair n_answer"]
    wrong: Int[Tensor, "pair n_wrong"]

    @classmethod
    def of(cls, pairs: Sequence[EncodedPair], device: torch.device) -> Prompts:
        """Pad pairs and move them to a device."""
        return cls(
            pairs=tuple(pairs),
            clean=_stack([pair.clean for pair in pairs], 0, device),
            corrupted=_stack([pair.corrupted for pair in pairs], 0, device),
            length=torch.tensor([len(pair.clean) for pair in pairs], device=device),
            first_difference=torch.tensor([pair.first_difference for pair in pairs], device=device),
            answer=_stack([pair.answer for pair in pairs], PAD_TOKEN, device),
            wrong=_stack([pair.wrong for pair in pairs], PAD_TOKEN, device),
        )

    def tokens(self, side: Side) -> Int[Tensor, "pair pos"]:
        """Return the token ids of a side."""
        return self.clean if side == "clean" else self.corrupted

    @property
    def answer_position(self) -> Int[Tensor, "pair"]:
        """The last position of each prompt, at which the answer is predicted."""
        return self.length - 1

    @property
    def width(self) -> int:
        """The number of tokens of the longest prompt."""
        return self.clean.shape[1]

    def __len__(self) -> int:
        return len(self.pairs)


def other_side(side: Side) -> Side:
    """Return the other side of a pair."""
    return "corrupted" if side == "clean" else "clean"


def base_side(direction: Direction) -> Side:
    """Return the side whose run is patched; the values that are put in come from the other side.

    Denoising patches the corrupted run with clean values; noising patches the clean run with
    corrupted ones.
    """
    return "corrupted" if direction == "denoising" else "clean"


def _stack(rows: Sequence[Sequence[int]], padding: int, device: torch.device) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows], device=device)
