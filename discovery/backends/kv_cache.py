"""Keys and values of earlier positions, and the Hugging Face cache that a module takes and returns.

Rows of a sweep share the beginning of their prompts. Its keys and values are computed once, in an
unchanged run, and given to every later run as a `Prefix`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Prefix:
    """Keys and values of earlier positions as the attention uses them, rotary embedding included.

    Attributes:
        keys: one tensor [row kv_head prefix d_head] for each layer, with the rows that the layer
            works on.
        values: the same for the values.
    """

    keys: tuple[Float[Tensor, "_ kv_head prefix d_head"], ...]
    values: tuple[Float[Tensor, "_ kv_head prefix d_head"], ...]

    def take(self, rows: Int[Tensor, "n"], length: int) -> Prefix:
        """Return the first `length` positions of these rows."""
        return Prefix(
            tuple(keys[rows, :, :length] for keys in self.keys),
            tuple(values[rows, :, :length] for values in self.values),
        )

    def take_by_layer(self, rows: Int[Tensor, "n"], counts: Sequence[int], length: int) -> Prefix:
        """Return the first `length` positions of as many of these rows as each layer works on.

        Args:
            rows: the rows, those that enter at earlier layers first.
            counts: for each layer, how many of the rows it works on. A layer that works on none is
                skipped, and gets one row.
            length: how many positions.
        """
        rows_by_layer = [rows[: max(count, 1)] for count in counts]
        keys = zip(self.keys, rows_by_layer, strict=True)
        values = zip(self.values, rows_by_layer, strict=True)
        return Prefix(
            tuple(tensor[some, :, :length] for tensor, some in keys),
            tuple(tensor[some, :, :length] for tensor, some in values),
        )

    @property
    def nbytes(self) -> int:
        """The size of all keys and values in bytes."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


def to_dynamic_cache(prefix: Prefix | None) -> Any:
    """Return a Hugging Face cache that holds the prefix, or an empty one if there is none.

    Its layers are plain ones, because sliding-window layers would forget early positions.
    """
    # transformers is heavy, and imported with the model already.
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    if prefix is not None:
        for keys, values in zip(prefix.keys, prefix.values, strict=True):
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
    return cache


def from_dynamic_cache(cache: Any) -> Prefix:
    """Return the keys and values of every position that a Hugging Face cache holds."""
    return Prefix(
        tuple(layer.keys for layer in cache.layers), tuple(layer.values for layer in cache.layers)
    )


def forward_arguments(
    tokens: Int[Tensor, "row pos"], prefix: Prefix | None, *, takes_cache: bool, keep_prefix: bool
) -> dict[str, Any]:
    """Return the keyword arguments of a Hugging Face module's forward pass.

    Args:
        tokens: the token ids.
        prefix: keys and values of the positions before them.
        takes_cache: whether the module takes and returns a cache.
        keep_prefix: whether the cache is wanted afterwards.
    """
    if not takes_cache:
        return {"input_ids": tokens}
    use_cache = keep_prefix or prefix is not None
    cache = to_dynamic_cache(prefix) if use_cache else None
    return {"input_ids": tokens, "use_cache": use_cache, "past_key_values": cache}
