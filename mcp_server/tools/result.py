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

CONCISE_LIMIT, DETAILED_LIMIT = (
    10_000,
    40_000,
)  # characters of JSON, spaced and escaped: the longest way to write it
_MIN_ROWS = 10  # rows that each list keeps before any list loses more


class CostView(BaseModel):
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

    shortened_fields: ClassVar[tuple[str, ...]] = ()
    keeps_newest: ClassVar[bool] = False
    narrowing_hint: ClassVar[str] = "Ask for less at a time."

    def make_narrowing_hint(self, facts: Mapping[str, Any]) -> str:
        """`rest`, for what `facts` show of the result."""
        return self.narrowing_hint


class Listing(Result):
    """A result with a list that may be cut."""

    total: int = Field(description="Rows there are.")
    truncated: bool = Field(default=False, description="Whether rows were left out.")
    narrow: str | None = Field(default=None, description="How to see the rest.")


def round_number(value: float | None, digits: int = 5) -> float | None:
    """A number for reading: so many significant digits; None where it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def round_numbers(value: Any, digits: int = 5) -> Any:
    """Nested JSON data with every number made readable."""
    if isinstance(value, bool) or value is None or isinstance(value, int | str):
        return value
    if isinstance(value, float):
        return round_number(value, digits)
    if isinstance(value, Mapping):
        return {str(name): round_numbers(inner, digits) for name, inner in value.items()}
    return [round_numbers(inner, digits) for inner in value]


def cost_view(found: Any) -> CostView:
    """The work of a measurement."""
    return CostView(
        forward_equivalents=round_number(found.forward_equivalents, 6),
        seconds=round_number(found.seconds, 3),
    )


def make_link(uri: str, name: str, mime_type: str, size: int | None = None) -> ResourceLink:
    """A link to something too large to show."""
    return ResourceLink(uri=uri, name=name, mime_type=mime_type, size=size)


def make_image(png: bytes) -> ContentBlock:
    """A PNG in a result."""
    return Image(data=png, format="png").to_image_content()


def to_call_result(
    result: Result, extra_content: Sequence[ContentBlock] = (), *, detailed: bool = False
) -> CallToolResult:
    """The result on the wire: structured, the same as compact text for clients that read only that, and what stands beside it."""
    facts = fit_to_limit(result, DETAILED_LIMIT if detailed else CONCISE_LIMIT)
    text = json.dumps(facts, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return CallToolResult(
        content=[TextContent(type="text", text=text), *extra_content], structured_content=facts
    )


def fit_to_limit(result: Result, limit: int) -> dict[str, Any]:
    """The result's facts, each list cut to the most rows that fit: all down to a few rows first, then to none."""
    facts: dict[str, Any] = result.model_dump(mode="json")
    if facts.get("truncated"):
        facts = _mark_truncated(result, facts)
    for least in (_MIN_ROWS, 0):
        for name in result.shortened_fields:
            rows = facts.get(name)
            if (
                not isinstance(rows, list)
                or len(rows) <= least
                or _count_characters(facts) <= limit
            ):
                continue
            facts = _keep_rows(
                result, facts, name, _count_fitting_rows(result, facts, name, least, limit)
            )
    if _count_characters(facts) > DETAILED_LIMIT:
        facts = _mark_truncated(result, _shorten_until_fits(facts))
    return facts


def _count_fitting_rows(
    result: Result, facts: dict[str, Any], name: str, least: int, limit: int
) -> int:
    """How many rows of a list fit."""
    longer = range(least + 1, len(facts[name]))
    return least + bisect_left(
        longer,
        True,
        key=lambda kept: _count_characters(_keep_rows(result, facts, name, kept)) > limit,
    )


def _keep_rows(result: Result, facts: dict[str, Any], name: str, kept: int) -> dict[str, Any]:
    """The facts with so many rows of one list, and with word of it."""
    rows = facts[name]
    return _mark_truncated(
        result, {**facts, name: rows[len(rows) - kept :] if result.keeps_newest else rows[:kept]}
    )


def _mark_truncated(result: Result, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts, saying that they are not all."""
    return (
        {**facts, "truncated": True, "narrow": result.narrow or result.make_narrowing_hint(facts)}
        if isinstance(result, Listing)
        else facts
    )


def _shorten_until_fits(facts: dict[str, Any]) -> dict[str, Any]:
    """The last guard, for what no list accounts for: long texts and inner lists are shortened until everything fits.

    Raises:
        RuntimeError: where even that does not help, which is a bug of the tool.
    """
    for characters, rows in ((2_000, 200), (400, 50), (100, 10), (40, 3)):
        facts = _shorten(facts, characters, rows)
        if _count_characters(facts) <= DETAILED_LIMIT - 500:  # room for saying so
            return facts
    raise RuntimeError(f"a result of {_count_characters(facts)} characters")


def _shorten(value: Any, characters: int, rows: int) -> Any:
    """Nested JSON data with shorter texts and lists; an object keeps its fields, which its schema requires."""
    if isinstance(value, str):
        return value if len(value) <= characters else f"{value[: characters - 1]}…"
    if isinstance(value, dict):
        return {name: _shorten(inner, characters, rows) for name, inner in value.items()}
    return (
        [_shorten(inner, characters, rows) for inner in value[:rows]]
        if isinstance(value, list)
        else value
    )


def _count_characters(facts: Mapping[str, Any]) -> int:
    return len(json.dumps(facts))
