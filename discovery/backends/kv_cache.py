"""Keys and values of earlier positions, as the Hugging Face cache that a module takes and returns."""

from __future__ import annotations

from typing import Any

from discovery.backends.base import Prefix


def to_dynamic_cache(prefix: Prefix | None) -> Any:
    """A cache that holds the prefix, or nothing yet; plain layers, since sliding ones would forget early positions."""
    from transformers.cache_utils import (
        DynamicCache,
        DynamicLayer,
    )  # heavy, and loaded with the model already

    cache = DynamicCache()
    for keys, values in zip(prefix.keys, prefix.values, strict=True) if prefix is not None else ():
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def from_dynamic_cache(cache: Any) -> Prefix:
    """Every position's keys and values that a cache holds."""
    return Prefix(
        tuple(layer.keys for layer in cache.layers), tuple(layer.values for layer in cache.layers)
    )
