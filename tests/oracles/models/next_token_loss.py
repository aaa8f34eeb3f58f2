"""Next-token cross-entropy of a plain Hugging Face GPT-2, with the residual stream replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def next_token_loss(
    module: Any,
    layer: int,
    rows: Sequence[Sequence[int]],
    change: Callable[[Tensor], Tensor] | None = None,
    skip: int = 0,
) -> float:
    """Return the mean cross-entropy in nats, row by row.

    Args:
        layer: the stream after this layer is changed, by a hook on the module.
        change: what replaces the stream; None leaves it as it is.
        skip: positions at the start of each row that are neither changed nor counted.
    """

    def hook(_: Any, __: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        if change is not None:
            hidden = hidden.clone()
            hidden[:, skip:] = change(hidden[:, skip:])
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = module.transformer.h[layer].register_forward_hook(hook)
    total = 0.0
    count = 0
    try:
        with torch.no_grad():
            for row in rows:
                logits = module(torch.tensor([row])).logits[0, skip:-1]
                targets = torch.tensor(row[skip + 1 :])
                loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
                total += float(loss)
                count += len(row) - 1 - skip
    finally:
        handle.remove()
    return total / count
