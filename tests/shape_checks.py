"""The checker that the jaxtyping import hook puts on every function of the tensor half: beartype, on what writes a shape.

The rest of a signature is mypy's. Handing all of it to beartype fails at import on a `Protocol` that is not
runtime-checkable and on names imported for type checking only, neither of which is a fault.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its shaped arguments and results checked at each call; itself where it has none."""
    shaped = {name: hint for name, hint in function.__annotations__.items() if has_shape(hint)}
    if not shaped:
        return function
    function.__annotations__ = shaped
    return beartype(function)


def has_shape(hint: Any) -> bool:
    """Whether a jaxtyping array stands anywhere in `hint`; a string that hides one counts, so that beartype complains of it."""
    if isinstance(hint, str):
        return any(
            f"{kind}[" in hint for kind in ("Float", "Int", "Bool", "Shaped", "Num", "Inexact")
        )
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(has_shape(part) for part in get_args(hint) if not isinstance(part, str))
