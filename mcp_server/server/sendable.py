"""What leaves the server: texts that can be sent, and over HTTP no path of this machine.

Every result of a tool and every text of a resource passes here, those that succeeded too. So a tool
cannot give a path away by a message that it took from a library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.types import CallToolResult, InputRequiredResult
from pydantic import BaseModel

_BINARY_FIELDS = frozenset({"data", "blob"})  # base64, in which there is nothing to hide

Clean = Callable[[str], str]
ResultT = TypeVar("ResultT", bound=CallToolResult | InputRequiredResult)
ModelT = TypeVar("ModelT", bound=BaseModel)


def make_cleaner(redact: Clean | None) -> Clean:
    """Return what makes a text fit to be sent.

    Args:
        redact: hides the paths of this machine; None for a client that may see them.
    """

    def clean(text: str) -> str:
        # A file name that is not UTF-8 has lone surrogates, which JSON cannot carry: they would end
        # the connection.
        sendable = text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
        return sendable if redact is None else redact(sendable)

    return clean


def clean_result(result: ResultT, clean: Clean) -> ResultT:
    """Return the result of a tool with every text in it cleaned."""
    return _clean_model(result, clean)


def clean_contents(
    contents: Iterable[ReadResourceContents], clean: Clean
) -> list[ReadResourceContents]:
    """Return the contents of a resource with its texts cleaned."""
    return [
        replace(part, content=clean(part.content)) if isinstance(part.content, str) else part
        for part in contents
    ]


def _clean_model(model: ModelT, clean: Clean) -> ModelT:
    names = model.model_fields_set - _BINARY_FIELDS
    return model.model_copy(
        update={name: _clean_value(getattr(model, name), clean) for name in names}
    )


def _clean_value(value: Any, clean: Clean) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, BaseModel):
        return _clean_model(value, clean)
    if isinstance(value, Mapping):
        return {name: _clean_value(inner, clean) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean_value(inner, clean) for inner in value]
    return value
