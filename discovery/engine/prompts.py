"""A task's pairs as padded tensors on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from discovery.metrics import PAD_TOKEN
from discovery.tasks.task import EncodedPair

Side = Literal["clean", "corrupted"]
SIDES: tuple[Side, ...] = get_args(Side)


@dataclass(frozen=True)
class Prompts:
    """Pairs, right-padded: a causal model's positions never see what stands after them.

    Attributes:
        pairs: as they came.
        clean, corrupted: token ids; padding is token 0.
        length: of each prompt. last: its answer position. first: the first position that differs between the sides.
        answer, wrong: token ids, padded with -1.
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
        """Stack pairs."""
        return cls(
            tuple(pairs),
            _stack([pair.clean for pair in pairs], 0, device),
            _stack([pair.corrupted for pair in pairs], 0, device),
            torch.tensor([len(pair.clean) for pair in pairs], device=device),
            torch.tensor([pair.first_difference for pair in pairs], device=device),
            _stack([pair.answer for pair in pairs], PAD_TOKEN, device),
            _stack([pair.wrong for pair in pairs], PAD_TOKEN, device),
        )

    def tokens(self, side: Side) -> Int[Tensor, "pair pos"]:
        return self.clean if side == "clean" else self.corrupted

    @property
    def answer_position(self) -> Int[Tensor, "pair"]:
        return self.length - 1

    @property
    def width(self) -> int:
        return self.clean.shape[1]

    def __len__(self) -> int:
        return len(self.pairs)


def other_side(side: Side) -> Side:
    """The other side of a pair."""
    return "corrupted" if side == "clean" else "clean"


def _stack(rows: Sequence[Sequence[int]], padding: int, device: torch.device) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows], device=device)
