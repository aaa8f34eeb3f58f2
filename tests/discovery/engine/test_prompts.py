"""Prompts: pairs as padded tensors, and their two sides."""

from __future__ import annotations

import torch

from benchmarks.random_models.tiny_models import random_pairs
from discovery.engine import Prompts, other_side


def test_prompts_are_padded_on_the_right():
    pairs = random_pairs([2, 4], sets=3)
    prompts = Prompts.of(pairs, torch.device("cpu"))
    assert (len(prompts), prompts.width) == (2, 4)
    assert prompts.length.tolist() == [2, 4]
    assert prompts.answer_position.tolist() == [1, 3]
    assert prompts.first_difference.tolist() == [pair.first_difference for pair in pairs]
    for side in ("clean", "corrupted"):
        rows = prompts.tokens(side).tolist()  # type: ignore[arg-type]
        assert rows == [[*getattr(pair, side), *[0] * (4 - len(pair.clean))] for pair in pairs]
    for name in ("answer", "wrong"):
        rows = getattr(prompts, name).tolist()
        width = max(len(getattr(pair, name)) for pair in pairs)
        assert rows == [
            [*getattr(pair, name), *[-1] * (width - len(getattr(pair, name)))] for pair in pairs
        ]


def test_other_side():
    assert other_side("clean") == "corrupted"
    assert other_side("corrupted") == "clean"
