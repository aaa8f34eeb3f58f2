"""What is said to be needed is what the engine asks for, and is known before the model is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from discovery.backends.outline import outline
from discovery.engine import Engine, Need, sweep_bytes
from discovery.errors import MemoryLimitError
from tests.discovery.tiny import as_task, random_pairs

MODELS = ("gpt2", "llama", "native", "attn_only")
MANY, TOKENS = 100, 6  # of so many pairs the caches decide, not the batch


@pytest.mark.parametrize("name", MODELS)
def test_with_what_is_needed_all_pairs_are_one_block_and_with_less_they_are_not(shelf: Any, name: str) -> None:
    model, task = shelf.load(name), as_task(random_pairs([TOKENS] * MANY))
    limit = sweep_bytes(model.info, TOKENS, MANY)
    assert [len(block.prompts) for _, block in Engine(model, task, memory=limit).blocks()] == [MANY]
    assert len(list(Engine(model, task, memory=limit - 1).blocks())) == 2


@pytest.mark.parametrize("name", MODELS)
def test_one_pair_and_a_row_fit_with_what_is_needed(shelf: Any, name: str) -> None:
    model, task = shelf.load(name), as_task(random_pairs([TOKENS]))
    blocks = list(Engine(model, task, memory=sweep_bytes(model.info, TOKENS)).blocks())
    assert len(blocks) == 1
    with pytest.raises(MemoryLimitError):
        Engine(model, task, memory=sweep_bytes(model.info, TOKENS, MANY) // (2 * MANY))


@pytest.mark.parametrize("name", [*MODELS, "mixtral"])
def test_it_is_known_before_the_model_is_loaded(shelf: Any, name: str) -> None:
    model = shelf.load(name)
    need = Need.of(model.info)
    assert Need.of(outline(shelf.path(name))) == need
    assert need.tokens == min(32, model.n_ctx)
    assert need.sweep_pair < need.sweep
