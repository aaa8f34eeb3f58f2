"""Strict JSON, which a parser in any language reads back as it was written.

JSON has no NaN and no Infinity, although Python writes both. Here a number that is not finite
counts as unknown, and unknown is ``null``. Text is written with ASCII escapes, because a
tokenizer can produce half of a surrogate pair. Keys are text. Anything that is not JSON (an
array, a path, a set) is a bug, and raises a TypeError.

    >>> dumps({"p": float("nan"), "nodes": ("a9.h6", "m5")})
    '{"p": null, "nodes": ["a9.h6", "m5"]}'
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from discovery.errors import StoreError


def to_plain_json(value: object) -> Any:
    """Return a value as plain JSON data.

    Tuples become lists, numpy scalars become numbers, and a number that is not finite becomes None.

    Raises:
        TypeError: if JSON cannot hold it, such as an array or a key that is not text.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, BaseModel):
        return to_plain_json(value.model_dump(mode="json", by_alias=True))
    if isinstance(value, Mapping):
        return {_key(key): to_plain_json(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [to_plain_json(item) for item in value]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # numpy.bool_, a 0-d array
        return to_plain_json(value.item())
    raise TypeError(f"{type(value).__name__} is not JSON: {value!r}")


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a JSON key must be text, not {type(key).__name__}: {key!r}")
    return str(key)


def dumps(value: object, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """Return a value as strict JSON text in ASCII. Pydantic models are written by their aliases.

    Raises:
        TypeError: if JSON cannot hold it.
    """
    return json.dumps(to_plain_json(value), indent=indent, sort_keys=sort_keys, allow_nan=False)


def loads(text: str | bytes, source: str) -> Any:
    """Return the value of strict JSON text.

    Args:
        text: the text; bytes are read as UTF-8.
        source: the name of the file, for error messages.

    Raises:
        StoreError: if it is not JSON in UTF-8, or contains NaN or Infinity.
    """
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(decoded, parse_constant=_reject_constant, parse_float=_parse_finite)
    except json.JSONDecodeError as fault:
        place = f"line {fault.lineno}, column {fault.colno}"
        raise StoreError(
            f"{source} is damaged: no JSON at {place}.",
            "Restore the file, or delete it and run again.",
            detail=fault.msg,
        ) from fault
    except UnicodeDecodeError as fault:
        raise StoreError(
            f"{source} is damaged: byte {fault.start} is not UTF-8.",
            "Restore the file, or delete it and run again.",
        ) from fault
    except (ValueError, RecursionError) as fault:
        raise StoreError(
            f"{source} is damaged: {fault or 'nested too deep'}.",
            "Restore the file, or delete it and run again.",
        ) from fault


def _reject_constant(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


def _parse_finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits} is too large for a double")
    return number
