"""Each shortcut is tried by itself, and dropped by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from discovery.backends.base import Batch, BatchResult
from discovery.backends.info import Abilities
from discovery.backends.loading.abilities import find_abilities
from discovery.errors import BackendMismatchError, SiteError
from tests.discovery.backends.loading.faulty_backend import FaultyBackend, shift_logits


def test_a_sound_backend_has_them_all(tiny_models, expected):
    assert find_abilities(tiny_models.load("gpt2"), expected) == Abilities(
        True, True, True, True, True, True, True
    )


WRONG_ANSWERS = {
    "prefix": lambda batch, edits, out: shift_logits(out) if batch.prefix is not None else out,
    "columns": lambda batch, edits, out: shift_logits(out) if batch.columns is not None else out,
    "joins": lambda batch, edits, out: shift_logits(out) if batch.joins else out,
    "narrow": lambda batch, edits, out: shift_logits(out) if batch.narrow else out,
    "middle": lambda batch, edits, out: shift_logits(out) if batch.middle else out,
    "pattern": lambda batch, edits, out: (
        replace(out, activations={k: v + 1 for k, v in out.activations.items()}) if edits else out
    ),
    "linear_heads": lambda batch, edits, out: replace(
        out,
        activations={
            k: v * 1.01 if k.kind == "attn_out" else v for k, v in out.activations.items()
        },
    ),
}


@pytest.mark.parametrize("ability", WRONG_ANSWERS)
def test_each_shortcut_is_dropped_by_itself(tiny_models, expected, ability):
    found = find_abilities(
        FaultyBackend(tiny_models.load("gpt2"), WRONG_ANSWERS[ability]), expected
    )
    assert found == replace(Abilities(True, True, True, True, True, True, True), **{ability: False})


@pytest.mark.parametrize(
    "error",
    [
        SiteError("no", "none"),
        TypeError(),
        ValueError(),
        RuntimeError("shape"),
        NotImplementedError(),
    ],
)
def test_a_shortcut_that_fails_is_not_taken(tiny_models, expected, error):
    def fail(batch: Batch, edits: Any, out: BatchResult) -> BatchResult:
        if batch.prefix is not None:
            raise error
        return out

    assert find_abilities(FaultyBackend(tiny_models.load("gpt2"), fail), expected) == Abilities(
        False, True, True, True, True, True, True
    )


def test_too_little_memory_is_no_verdict_on_a_shortcut(tiny_models, expected):
    def fail(batch: Batch, edits: Any, out: BatchResult) -> BatchResult:
        if batch.prefix is not None:
            raise torch.OutOfMemoryError
        return out

    with pytest.raises(torch.OutOfMemoryError):
        find_abilities(FaultyBackend(tiny_models.load("gpt2"), fail), expected)


def test_a_backend_that_cannot_start_in_the_middle_is_refused(tiny_models, expected):
    lie = FaultyBackend(
        tiny_models.load("gpt2"),
        lambda batch, edits, out: shift_logits(out) if batch.start else out,
    )
    with pytest.raises(BackendMismatchError, match="cannot be started in the middle"):
        find_abilities(lie, expected)
