"""What the engine's tests share: single runs, and engines with small blocks."""

from __future__ import annotations

from typing import Any

import torch

from discovery.backends.base import Batch
from discovery.engine import Engine
from discovery.errors import MemoryLimitError


def logits_of(model: Any, tokens: Any, reads: Any = (), edits: Any = ()) -> Any:
    return model.run(
        Batch(torch.tensor([list(tokens)]), torch.tensor([len(tokens) - 1])), reads, edits
    )


def engine_with_blocks(model: Any, task: Any, max_pairs: int) -> Engine:
    """Return an engine whose blocks hold as many pairs as possible, up to a number."""
    largest = None
    for memory in range(500, 10**7, 500):
        try:
            engine = Engine(model, task, memory=memory)
        except MemoryLimitError:
            continue
        if max(len(block.prompts) for _, block in engine.blocks()) > max_pairs:
            break
        largest = engine
    assert largest is not None
    return largest
