"""Patching one key-value head, and one edge into a query head, by plain hooks on a Llama.

Nothing of Circuit Scout computes here: each cell is a forward pass of the Hugging Face module with
a hook on ``k_proj`` or ``v_proj``.
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
    """The logit difference with one key-value head's keys or values exchanged at all positions."""
    source, base = pair.clean, pair.corrupted
    if direction == "noising":
        source, base = base, source
    there = outputs(module, projection(module, layer, slot), source)
    with replaced(projection(module, layer, slot), columns(module, index), there):
        return difference(module, base, pair)


def edge(
    module: Any,
    pair: EncodedPair,
    source: tuple[int, int],
    target: tuple[int, int],
    slots: tuple[Slot, ...],
) -> float:
    """The logit difference of the clean run in which one query head alone reads the source anew.

    It reads it through these slots. The module is rebuilt so that each query head has keys and
    values of its own, with the same weights.
    """
    apart = ungrouped(module)
    layer, head = target
    delta = spoken(apart, pair.corrupted, *source) - spoken(apart, pair.clean, *source)
    block = apart.model.layers[layer]
    stream = inputs(apart, block.input_layernorm, pair.clean)
    with ExitStack() as stack:
        for slot in slots:
            made = projection(apart, layer, slot)
            with torch.no_grad():
                read = made(block.input_layernorm(stream + delta))
            stack.enter_context(replaced(made, columns(apart, head), read))
        return difference(apart, pair.clean, pair)


def ungrouped(module: Any) -> Any:
    """The same function with a key-value head for each query head: a copy of its group's."""
    apart = copy.deepcopy(module)
    heads, shared = module.config.num_attention_heads, module.config.num_key_value_heads
    for block in apart.model.layers:
        attention = block.self_attn
        for made in (attention.k_proj, attention.v_proj):
            by_head = made.weight.data.reshape(shared, -1, made.weight.shape[1])
            copies = by_head.repeat_interleave(heads // shared, 0).flatten(0, 1)
            made.weight = torch.nn.Parameter(copies, requires_grad=False)
        attention.num_key_value_groups = 1
    return apart


def spoken(module: Any, tokens: tuple[int, ...], layer: int, head: int) -> Tensor:
    """What a query head writes into the residual stream, [1 pos d_model]."""
    out = module.model.layers[layer].self_attn.o_proj
    own = columns(module, head)
    return inputs(module, out, tokens)[..., own] @ out.weight[:, own].T


def columns(module: Any, index: int) -> slice:
    """Where a head's numbers lie beside those of the others."""
    width = module.config.head_dim
    return slice(index * width, (index + 1) * width)


def projection(module: Any, layer: int, slot: Slot) -> Any:
    """The Linear that makes q, k or v."""
    return getattr(module.model.layers[layer].self_attn, f"{slot}_proj")


def outputs(module: Any, part: Any, tokens: tuple[int, ...]) -> Tensor:
    """What a part gives on a prompt."""
    return _seen(module, part, tokens, lambda _, given, made: made)


def inputs(module: Any, part: Any, tokens: tuple[int, ...]) -> Tensor:
    """What a part is given on a prompt."""
    return _seen(module, part, tokens, lambda _, given, made: given[0])


def difference(module: Any, tokens: tuple[int, ...], pair: EncodedPair) -> float:
    """The logit difference at a prompt's end."""
    with torch.no_grad():
        logits = module(torch.tensor([tokens])).logits[0, -1]
    return float(logits[list(pair.answer)].logsumexp(0) - logits[list(pair.wrong)].logsumexp(0))


@contextmanager
def replaced(part: Any, where: slice, value: Tensor) -> Iterator[None]:
    """Some columns of what a part gives are these, as long as the context lasts."""

    def put(_: Any, given: Any, made: Tensor) -> Tensor:
        changed = made.clone()
        changed[..., where] = value[..., where]
        return changed

    handle = part.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def _seen(module: Any, part: Any, tokens: tuple[int, ...], pick: Callable[..., Tensor]) -> Tensor:
    found: list[Tensor] = []
    handle = part.register_forward_hook(lambda *call: found.append(pick(*call)))
    try:
        with torch.no_grad():
            module(torch.tensor([tokens]))
    finally:
        handle.remove()
    return found[0]
