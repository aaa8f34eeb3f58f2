"""Patching one key-value head, and one edge into a query head, by plain hooks on a Llama.

Circuit Scout computes nothing here: each cell is a forward pass of the Hugging Face module with a
hook on ``k_proj`` or ``v_proj``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from discovery.sites import Direction
from discovery.tasks.task import EncodedPair

Slot = Literal["q", "k", "v"]


def patch(
    module: Any,
    pair: EncodedPair,
    slot: Slot,
    layer: int,
    index: int,
    direction: Direction,
) -> float:
    """Return the logit difference with one key-value head's keys or values exchanged.

    They are exchanged at all positions.
    """
    source, base = pair.clean, pair.corrupted
    if direction == "noising":
        source, base = base, source
    source_value = outputs(module, projection(module, layer, slot), source)
    with replaced(projection(module, layer, slot), columns(module, index), source_value):
        return difference(module, base, pair)


def edge(
    module: Any,
    pair: EncodedPair,
    source: tuple[int, int],
    target: tuple[int, int],
    slots: tuple[Slot, ...],
) -> float:
    """Return the logit difference of the clean run with one edge into a query head patched.

    Only that query head reads the corrupted source, and only through these slots. The module is
    rebuilt so that each query head has keys and values of its own, with the same weights.
    """
    separate = ungrouped(module)
    layer, head = target
    corrupted_output = head_output(separate, pair.corrupted, *source)
    delta = corrupted_output - head_output(separate, pair.clean, *source)
    block = separate.model.layers[layer]
    stream = inputs(separate, block.input_layernorm, pair.clean)
    with ExitStack() as stack:
        for slot in slots:
            linear = projection(separate, layer, slot)
            with torch.no_grad():
                value = linear(block.input_layernorm(stream + delta))
            stack.enter_context(replaced(linear, columns(separate, head), value))
        return difference(separate, pair.clean, pair)


def ungrouped(module: Any) -> Any:
    """Return the same function with a key-value head for each query head, copied from its group."""
    separate = copy.deepcopy(module)
    n_heads = module.config.num_attention_heads
    n_kv_heads = module.config.num_key_value_heads
    for block in separate.model.layers:
        attention = block.self_attn
        for linear in (attention.k_proj, attention.v_proj):
            by_head = linear.weight.data.reshape(n_kv_heads, -1, linear.weight.shape[1])
            copies = by_head.repeat_interleave(n_heads // n_kv_heads, 0).flatten(0, 1)
            linear.weight = torch.nn.Parameter(copies, requires_grad=False)
        attention.num_key_value_groups = 1
    return separate


def head_output(module: Any, tokens: tuple[int, ...], layer: int, head: int) -> Tensor:
    """Return what a query head adds to the residual stream, [1 pos d_model]."""
    linear = module.model.layers[layer].self_attn.o_proj
    head_columns = columns(module, head)
    return inputs(module, linear, tokens)[..., head_columns] @ linear.weight[:, head_columns].T


def columns(module: Any, index: int) -> slice:
    """Return the columns of one head in an activation that holds all heads side by side."""
    width = module.config.head_dim
    return slice(index * width, (index + 1) * width)


def projection(module: Any, layer: int, slot: Slot) -> Any:
    """Return the Linear that computes q, k or v."""
    return getattr(module.model.layers[layer].self_attn, f"{slot}_proj")


def outputs(module: Any, part: Any, tokens: tuple[int, ...]) -> Tensor:
    """Return the output of a part of the module on a prompt."""
    return _record(module, part, tokens, lambda _, arguments, output: output)


def inputs(module: Any, part: Any, tokens: tuple[int, ...]) -> Tensor:
    """Return the input of a part of the module on a prompt."""
    return _record(module, part, tokens, lambda _, arguments, output: arguments[0])


def difference(module: Any, tokens: tuple[int, ...], pair: EncodedPair) -> float:
    """Return the logit difference at the end of a prompt."""
    with torch.no_grad():
        logits = module(torch.tensor([tokens])).logits[0, -1]
    return float(logits[list(pair.answer)].logsumexp(0) - logits[list(pair.wrong)].logsumexp(0))


@contextmanager
def replaced(part: Any, where: slice, value: Tensor) -> Iterator[None]:
    """Replace some columns of a part's output as long as the context lasts."""

    def replace(_: Any, arguments: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[..., where] = value[..., where]
        return changed

    handle = part.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _record(
    module: Any, part: Any, tokens: tuple[int, ...], select: Callable[..., Tensor]
) -> Tensor:
    """Run a prompt and return what `select` picks from the call of a part."""
    recorded: list[Tensor] = []
    handle = part.register_forward_hook(lambda *call: recorded.append(select(*call)))
    try:
        with torch.no_grad():
            module(torch.tensor([tokens]))
    finally:
        handle.remove()
    return recorded[0]
