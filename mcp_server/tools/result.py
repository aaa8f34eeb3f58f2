"""The results of the tools: one structured value, small enough to be read, with links to the rest.

Every fact is in the structured value, because some clients drop the text beside it. Lists have
their largest entries first and are cut to fit. `truncated` says that something was left out, and
`narrow` then says how to see it. A number that is not finite is shown as null, and `n_nonfinite`
counts them.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from mcp.server.mcpserver import Image
from mcp.types import CallToolResult, ContentBlock, ResourceLink, TextContent
from pydantic import BaseModel, Field

# Limits in characters of JSON with spaces and escapes, the longest way to write it.
CONCISE_LIMIT = 10_000
DETAILED_LIMIT = 40_000
_MARK_CHARACTERS = 500  # kept free for `truncated` and `narrow`
_MIN_ROWS = 10  # rows that each list keeps before any list loses more


class WorkDone(Protocol):
    """The cost of a measurement, as `discovery` reports it."""

    @property
    def forward_equivalents(self) -> float | None: ...
    @property
    def seconds(self) -> float | None: ...


class MeasuredInterval(Protocol):
    """A mean with its interval, as `discovery` reports it."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


class CostView(BaseModel):
    """What a measurement cost."""

    forward_equivalents: float | None
    seconds: float | None


class Result(BaseModel):
    """The base of every tool's result, and of the values inside it.

    Attributes:
        shortened_fields: lists that may be cut so that the result fits. The first is cut first;
            in each list, what matters most comes first.
        keeps_newest: whether the end of these lists is kept instead of their beginning.
        narrowing_hint: which arguments narrow the result, or give what was left out.
    """

    shortened_fields: ClassVar[tuple[str, ...]] = ()
    keeps_newest: ClassVar[bool] = False
    narrowing_hint: ClassVar[str] = "Ask for less at a time."

    def make_narrowing_hint(self, facts: Mapping[str, Any]) -> str:
        """Return the hint for a result of which only `facts` are shown."""
        return self.narrowing_hint


class Listing(Result):
    """A result with a list that may be cut."""

    total: int = Field(description="Rows there are.")
    truncated: bool = Field(default=False, description="Whether rows were left out.")
    narrow: str | None = Field(default=None, description="How to see the rest.")


class IntervalView(Result):
    """A mean and its 95% interval."""

    mean: float | None
    low: float | None
    high: float | None


def interval_view(interval: MeasuredInterval, digits: int = 5) -> IntervalView:
    """Return a mean and its interval with so many significant digits."""
    return IntervalView(
        mean=round_number(interval.mean, digits),
        low=round_number(interval.low, digits),
        high=round_number(interval.high, digits),
    )


def cost_view(*costs: WorkDone) -> CostView:
    """Return the work of one or several measurements together."""
    return CostView(
        forward_equivalents=round_number(_total(cost.forward_equivalents for cost in costs), 6),
        seconds=round_number(_total(cost.seconds for cost in costs), 3),
    )


def _total(values: Iterable[float | None]) -> float | None:
    """Return the sum; None if one of the values is not known."""
    total = 0.0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def round_number(value: float | None, digits: int = 5) -> float | None:
    """Return a number with so many significant digits; None if it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def round_numbers(value: Any, digits: int = 5) -> Any:
    """Return nested JSON data with every float rounded for reading."""
    if isinstance(value, bool) or value is None or isinstance(value, int | str):
        return value
    if isinstance(value, float):
        return round_number(value, digits)
    if isinstance(value, Mapping):
        return {str(name): round_numbers(inner, digits) for name, inner in value.items()}
    return [round_numbers(inner, digits) for inner in value]


def to_megabytes(n_bytes: int | None) -> float | None:
    """Return a number of bytes in megabytes, rounded for reading."""
    return None if n_bytes is None else round_number(n_bytes / 1e6, 3)


def shorten_text(text: str, limit: int) -> str:
    """Return a text of at most so many characters; dots show that it was cut."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def make_link(uri: str, name: str, mime_type: str, size: int | None = None) -> ResourceLink:
    """Return a link to something that is too large to show."""
    return ResourceLink(uri=uri, name=name, mime_type=mime_type, size=size)


def make_image(png: bytes) -> ContentBlock:
    """Return a PNG picture as content of a result."""
    return Image(data=png, format="png").to_image_content()


def to_call_result(
    result: Result, extra_content: Sequence[ContentBlock] = (), *, detailed: bool = False
) -> CallToolResult:
    """Return a result as the protocol carries it.

    Clients that read no structured content find the same as compact JSON text.

    Args:
        result: the structured value.
        extra_content: pictures and links.
        detailed: whether the larger limit applies.
    """
    facts = fit_to_limit(result, DETAILED_LIMIT if detailed else CONCISE_LIMIT)
    text = json.dumps(facts, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return CallToolResult(
        content=[TextContent(type="text", text=text), *extra_content], structured_content=facts
    )


def fit_to_limit(result: Result, limit: int) -> dict[str, Any]:
    """Return the facts of a result, with each list cut to as many rows as fit.

    All lists are first cut down to a few rows. Only if that is not enough do they lose these too.
    """
    facts: dict[str, Any] = result.model_dump(mode="json")
    if facts.get("truncated"):
        facts = _mark_truncated(result, facts)
    for min_rows in (_MIN_ROWS, 0):
        for name in result.shortened_fields:
            rows = facts.get(name)
            if not isinstance(rows, list) or len(rows) <= min_rows:
                continue
            if _count_characters(facts) > limit:
                n_rows = _count_fitting_rows(result, facts, name, min_rows, limit)
                facts = _keep_rows(result, facts, name, n_rows)
    if _count_characters(facts) > DETAILED_LIMIT:
        facts = _mark_truncated(result, _shorten_until_fits(facts))
    return facts


def _count_fitting_rows(
    result: Result, facts: dict[str, Any], name: str, min_rows: int, limit: int
) -> int:
    """Return how many rows of a list fit, at least `min_rows`."""

    def exceeds_limit(n_rows: int) -> bool:
        return _count_characters(_keep_rows(result, facts, name, n_rows)) > limit

    larger_counts = range(min_rows + 1, len(facts[name]))
    return min_rows + bisect_left(larger_counts, True, key=exceeds_limit)


def _keep_rows(result: Result, facts: dict[str, Any], name: str, n_rows: int) -> dict[str, Any]:
    """Return the facts with so many rows of one list, marked as truncated."""
    rows = facts[name]
    kept_rows = rows[len(rows) - n_rows :] if result.keeps_newest else rows[:n_rows]
    return _mark_truncated(result, {**facts, name: kept_rows})


def _mark_truncated(result: Result, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts with `truncated` and `narrow`, if the result has these fields."""
    if not isinstance(result, Listing):
        return facts
    hint = result.narrow or result.make_narrowing_hint(facts)
    return {**facts, "truncated": True, "narrow": hint}


def _shorten_until_fits(facts: dict[str, Any]) -> dict[str, Any]:
    """Shorten long texts and inner lists until everything fits.

    This is the last guard, for what `shortened_fields` do not account for.

    Raises:
        RuntimeError: if even that does not help, which is a bug of the tool.
    """
    for characters, rows in ((2_000, 200), (400, 50), (100, 10), (40, 3)):
        facts = _shorten(facts, characters, rows)
        if _count_characters(facts) <= DETAILED_LIMIT - _MARK_CHARACTERS:
            return facts
    raise RuntimeError(f"a result of {_count_characters(facts)} characters")


def _shorten(value: Any, characters: int, rows: int) -> Any:
    """Return nested JSON data with shorter texts and lists.

    An object keeps all its fields, because its schema requires them.
    """
    if isinstance(value, str):
        return value if len(value) <= characters else f"{value[: characters - 1]}…"
    if isinstance(value, dict):
        return {name: _shorten(inner, characters, rows) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shorten(inner, characters, rows) for inner in value[:rows]]
    return value


def _count_characters(facts: Mapping[str, Any]) -> int:
    return len(json.dumps(facts))
