"""What every tool gives back: one structured value, small enough to be read, with links to the rest.

Every fact is in the structured value, for clients drop the text beside it. Lists are largest first and cut to fit; `truncated` and
`narrow` say so, `narrow` always where `truncated` is true. A number that is not finite is null, and `n_nonfinite` counts them.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mcp.server.mcpserver import Image
from mcp.types import CallToolResult, ContentBlock, ResourceLink, TextContent
from pydantic import BaseModel, Field

CONCISE, DETAILED = 10_000, 40_000  # characters of JSON, spaced and escaped: the longest way to write it
_KEPT = 10  # rows that each list keeps before any list loses more


class Work(BaseModel):
    """What a measurement cost."""

    forward_equivalents: float | None
    seconds: float | None


class Result(BaseModel):
    """The base of every tool's result.

    Attributes:
        lists: fields that may be shortened to fit, the first first; what matters most stands first in each.
        newest_last: their ends are kept instead.
        rest: which arguments narrow the result or give what was left out.
    """

    lists: ClassVar[tuple[str, ...]] = ()
    newest_last: ClassVar[bool] = False
    rest: ClassVar[str] = "Ask for less at a time."

    def rest_of(self, facts: Mapping[str, Any]) -> str:
        """`rest`, for what `facts` show of the result."""
        return self.rest


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
    """The result's facts, each list cut to the most rows that fit: all down to a few rows first, then to none."""
    facts: dict[str, Any] = result.model_dump(mode="json")
    if facts.get("truncated"):
        facts = _told(result, facts)
    for least in (_KEPT, 0):
        for name in result.lists:
            rows = facts.get(name)
            if not isinstance(rows, list) or len(rows) <= least or _size(facts) <= limit:
                continue
            facts = _cut(result, facts, name, _most(result, facts, name, least, limit))
    if _size(facts) > DETAILED:
        facts = _told(result, _bounded(facts))
    return facts


def _most(result: Result, facts: dict[str, Any], name: str, least: int, limit: int) -> int:
    """How many rows of a list fit."""
    longer = range(least + 1, len(facts[name]))
    return least + bisect_left(longer, True, key=lambda kept: _size(_cut(result, facts, name, kept)) > limit)


def _cut(result: Result, facts: dict[str, Any], name: str, kept: int) -> dict[str, Any]:
    """The facts with so many rows of one list, and with word of it."""
    rows = facts[name]
    return _told(result, {**facts, name: rows[len(rows) - kept :] if result.newest_last else rows[:kept]})


def _told(result: Result, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts, saying that they are not all."""
    return {**facts, "truncated": True, "narrow": result.narrow or result.rest_of(facts)} if isinstance(result, Listing) else facts


def _bounded(facts: dict[str, Any]) -> dict[str, Any]:
    """The last guard, for what no list accounts for: long texts and inner lists are shortened until everything fits.

    Raises:
        RuntimeError: where even that does not help, which is a bug of the tool.
    """
    for characters, rows in ((2_000, 200), (400, 50), (100, 10), (40, 3)):
        facts = _shortened(facts, characters, rows)
        if _size(facts) <= DETAILED - 500:  # room for saying so
            return facts
    raise RuntimeError(f"a result of {_size(facts)} characters")


def _shortened(value: Any, characters: int, rows: int) -> Any:
    """Nested JSON data with shorter texts and lists; an object keeps its fields, which its schema requires."""
    if isinstance(value, str):
        return value if len(value) <= characters else f"{value[: characters - 1]}…"
    if isinstance(value, dict):
        return {name: _shortened(inner, characters, rows) for name, inner in value.items()}
    return [_shortened(inner, characters, rows) for inner in value[:rows]] if isinstance(value, list) else value


def _size(facts: Mapping[str, Any]) -> int:
    return len(json.dumps(facts))
