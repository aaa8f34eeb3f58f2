"""Each shortcut is tried on its own, and a shortcut that fails is dropped without the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from discovery.backends.base import Batch, BatchResult
from discovery.backends.loading.abilities import find_abilities
from discovery.errors import BackendMismatchError, SiteError
from tests.discovery.backends.loading.faulty_backend import (
    ALL_ABILITIES,
    FaultyBackend,
    shift_logits,
)


def test_a_sound_backend_has_them_all(tiny_models, expected):
    assert find_abilities(tiny_models.load("gpt2"), expected) == ALL_ABILITIES


def shift_if(attribute: str) -> Any:
    """A change of the answers to batches that use a shortcut."""

    def alter(batch: Batch, edits: Any, out: BatchResult) -> BatchResult:
        value = getattr(batch, attribute)
        return out if value is None or value is False or value == {} else shift_logits(out)

    return alter


def shift_edited(batch: Batch, edits: Any, out: BatchResult) -> BatchResult:
    if not edits:
        return out
    return replace(out, activations={site: value + 1 for site, value in out.activations.items()})


def scale_attn_out(batch: Batch, edits: Any, out: BatchResult) -> BatchResult:
    activations = {
        site: value * 1.01 if site.kind == "attn_out" else value
        for site, value in out.activations.items()
    }
    return replace(out, activations=activations)


WRONG_ANSWERS = {
    "prefix": shift_if("prefix"),
    "columns": shift_if("columns"),
    "joins": shift_if("joins"),
    "last_position_only": shift_if("last_position_only"),
    "after_attention": shift_if("after_attention"),
    "pattern": shift_edited,
    "linear_heads": scale_attn_out,
}


@pytest.mark.parametrize("ability", WRONG_ANSWERS)
def test_each_shortcut_is_dropped_by_itself(tiny_models, expected, ability):
    faulty = FaultyBackend(tiny_models.load("gpt2"), WRONG_ANSWERS[ability])
    assert find_abilities(faulty, expected) == replace(ALL_ABILITIES, **{ability: False})


@pytest.mark.parametrize("ability", ["prefix", "columns", "joins", "last_position_only"])
def test_a_shortcut_that_gives_nan_is_dropped(tiny_models, expected, ability):
    """Python's max(0.0, nan) is 0.0, so NaN must not pass for a small error."""

    def give_nan(batch: Batch, edits: Any, out: BatchResult) -> BatchResult:
        value = getattr(batch, ability)
        if value is None or value is False or value == {} or out.logits is None:
            return out
        return replace(out, logits=out.logits * float("nan"))

    faulty = FaultyBackend(tiny_models.load("gpt2"), give_nan)
    assert find_abilities(faulty, expected) == replace(ALL_ABILITIES, **{ability: False})


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

    faulty = FaultyBackend(tiny_models.load("gpt2"), fail)
    assert find_abilities(faulty, expected) == replace(ALL_ABILITIES, prefix=False)


@pytest.mark.parametrize("ability", ["prefix", "last_position_only"])
def test_a_shortcut_that_is_not_to_be_tried_is_not_taken(tiny_models, expected, ability):
    abilities = find_abilities(tiny_models.load("gpt2"), expected, untried=(ability,))
    assert abilities == replace(ALL_ABILITIES, **{ability: False})


def test_too_little_memory_is_no_verdict_on_a_shortcut(tiny_models, expected):
    def fail(batch: Batch, edits: Any, out: BatchResult) -> BatchResult:
        if batch.prefix is not None:
            raise torch.OutOfMemoryError
        return out

    with pytest.raises(torch.OutOfMemoryError):
        find_abilities(FaultyBackend(tiny_models.load("gpt2"), fail), expected)


def test_a_backend_that_cannot_start_in_the_middle_is_refused(tiny_models, expected):
    faulty = FaultyBackend(
        tiny_models.load("gpt2"),
        lambda batch, edits, out: shift_logits(out) if batch.start else out,
    )
    with pytest.raises(BackendMismatchError, match="cannot be started in the middle"):
        find_abilities(faulty, expected)
