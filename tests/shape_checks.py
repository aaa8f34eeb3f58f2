"""The checker that the jaxtyping import hook puts on every function of the packages with tensors.

It gives only the annotations with a shape to beartype; mypy checks the rest. If beartype got all of
them, importing would fail on a `Protocol` that is not runtime-checkable, and on names that are
imported for type checking only. Neither is a fault.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose shaped arguments and results are checked at each call."""
    shaped = {name: hint for name, hint in function.__annotations__.items() if has_shape(hint)}
    if not shaped:
        return function
    function.__annotations__ = shaped
    return beartype(function)


def has_shape(hint: Any) -> bool:
    """Return whether a type hint contains a jaxtyping array.

    A string that hides one counts too, so that beartype complains about it.
    """
    if isinstance(hint, str):
        kinds = ("Float", "Int", "Bool", "Shaped", "Num", "Inexact")
        return any(f"{kind}[" in hint for kind in kinds)
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(has_shape(part) for part in get_args(hint) if not isinstance(part, str))
