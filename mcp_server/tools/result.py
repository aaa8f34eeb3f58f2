"""What every tool gives back: one structured value, small enough to be read, with links to the rest.

Every fact is in the structured value, for clients drop the text beside it. Lists are largest first and cut to fit; `truncated` and
`narrow` say so. A number that is not finite is null, and `n_nonfinite` counts them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mcp.server.mcpserver import Image
from mcp.types import CallToolResult, ContentBlock, ResourceLink, TextContent
from pydantic import BaseModel, Field

CONCISE, DETAILED = 10_000, 40_000  # characters of JSON


class Work(BaseModel):
    """What a measurement cost."""

    forward_equivalents: float | None
    seconds: float | None


class Result(BaseModel):
    """The base of every tool's result.

    Attributes:
        lists: fields that may be shortened to fit, the first first.
    """

    lists: ClassVar[tuple[str, ...]] = ()


class Listing(Result):
    """A result with a list that may be cut."""

    total: int = Field(description="Rows there are.")
    truncated: bool = Field(default=False, description="Whether rows were left out.")
    narrow: str | None = Field(default=None, description="How to see the rest.")


def number(value: float | None, digits: int = 5) -> float | None:
    """A number for reading: so many significant digits; None where it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def numbers(value: Any, digits: int = 5) -> Any:
    """Nested JSON data with every number made readable."""
    if isinstance(value, bool) or value is None or isinstance(value, int | str):
        return value
    if isinstance(value, float):
        return number(value, digits)
    if isinstance(value, Mapping):
        return {str(name): numbers(inner, digits) for name, inner in value.items()}
    return [numbers(inner, digits) for inner in value]


def cost(found: Any) -> Work:
    """The work of a measurement."""
    return Work(forward_equivalents=number(found.forward_equivalents, 6), seconds=number(found.seconds, 3))


def link(uri: str, name: str, mime_type: str, size: int | None = None) -> ResourceLink:
    """A link to something too large to show."""
    return ResourceLink(uri=uri, name=name, mime_type=mime_type, size=size)


def picture(png: bytes) -> ContentBlock:
    """A PNG in a result."""
    return Image(data=png, format="png").to_image_content()


def answer(result: Result, beside: Sequence[ContentBlock] = (), *, detailed: bool = False) -> CallToolResult:
    """The result on the wire: structured, the same as compact text for clients that read only that, and what stands beside it."""
    facts = fitted(result, DETAILED if detailed else CONCISE)
    text = json.dumps(facts, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return CallToolResult(content=[TextContent(type="text", text=text), *beside], structured_content=facts)


def fitted(result: Result, limit: int) -> dict[str, Any]:
    """The result's facts, its lists halved from the end until they fit."""
    facts: dict[str, Any] = result.model_dump(mode="json")
    for name in result.lists:
        while _size(facts) > limit and isinstance(facts.get(name), list | dict) and facts[name]:
            rows = facts[name]
            kept = len(rows) // 2
            facts[name] = rows[:kept] if isinstance(rows, list) else dict(list(rows.items())[:kept])
            if "truncated" in facts:
                facts["truncated"] = True
    return facts


def _size(facts: dict[str, Any]) -> int:
    return len(json.dumps(facts, ensure_ascii=False, separators=(",", ":")))
