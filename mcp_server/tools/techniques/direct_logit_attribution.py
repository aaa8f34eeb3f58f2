"""Direct logit attribution: which parts of the model write the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from mcp.types import CallToolResult
from pydantic import Field

from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import (
    DEFAULT_PAIRS,
    ModelId,
    PairCount,
    RowLimit,
    Seed,
    ToolContext,
)
from mcp_server.tools.measurement import Measurement, run_measurement
from mcp_server.tools.result import (
    CostView,
    IntervalView,
    Listing,
    Result,
    cost_view,
    interval_view,
    round_number,
)
from mcp_server.tools.technique import (
    Figure,
    NamedToken,
    OtherToken,
    PromptChoice,
    TaskChoice,
    answer_with_picture,
    keep_picture,
    load_subject,
    require_one,
)

if TYPE_CHECKING:
    from discovery.methods.readout import DirectAttribution

_DIGITS = 4


class ContributionView(Result):
    """What one part adds to the logit difference."""

    part: str = Field(description="a9.h6, m5, embed; a9.bias: that attention's output bias.")
    value: IntervalView


class DirectLogitAttributionResult(Listing):
    """What direct_logit_attribution gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("parts", "accumulated")
    narrowing_hint: ClassVar[str] = "Ask for a larger top to see more parts."

    model_id: str
    task: str
    n: int
    answer: str | None
    wrong: str | None
    logit_difference: IntervalView
    sum: IntervalView = Field(description="Of all parts.")
    remainder: float | None = Field(description="logit_difference - sum: rounding.")
    parts: list[ContributionView] = Field(description="The largest absolute mean first.")
    accumulated: list[float | None] = Field(
        description="Contribution of the stream at each layer's input, and at the end."
    )
    warnings: list[str]
    figure: Figure
    cost: CostView


async def direct_logit_attribution(
    context: ToolContext,
    model_id: ModelId,
    prompt: PromptChoice = None,
    task: TaskChoice = None,
    answer: NamedToken = None,
    wrong: OtherToken = None,
    top: RowLimit = 15,
    pairs: PairCount = DEFAULT_PAIRS,
    seed: Seed = 0,
) -> Annotated[CallToolResult, DirectLogitAttributionResult]:
    """Writes the logit difference of the answer and the wrong answer as a sum over the embedding,
    every head, every MLP and every bias, with the last norm's scale frozen.

    Use it to find which parts write the answer themselves (name movers), and which write against
    it. Not for parts that work through later ones: those have no term of their own here, and
    patch_sweep or ablate_heads finds them. Cost: one forward pass per pair, under 1 s.

    Example: direct_logit_attribution(model_id="bundled", task="ioi").
    """
    require_one("direct_logit_attribution", prompt, task)

    def measure(measurement: Measurement) -> tuple[DirectLogitAttributionResult, bytes]:
        subject, notes = load_subject(measurement, prompt, task, pairs, seed)
        attribution = lazy_discovery.direct_logit_attribution(
            measurement.backend, answer=answer, wrong=wrong, **subject
        )
        largest = attribution.top(top)
        uri, png = keep_picture(
            measurement,
            "direct_logit_attribution",
            (prompt, subject["task"], answer, wrong, top),
            lambda: lazy_discovery.draw_bars(
                [part.part for part in largest[:30]],
                [part.value for part in largest[:30]],
                title=f"{attribution.task}: direct logit attribution",
                scale="contribution to the logit difference",
            ),
        )
        return _make_result(model_id, attribution, top, uri, notes), png

    description = f"direct_logit_attribution {model_id}"
    result, png = await run_measurement(context, model_id, description, measure)
    return answer_with_picture(context, result, result.figure, png)


def _make_result(
    model_id: str, attribution: DirectAttribution, top: int, figure: str, notes: list[str]
) -> DirectLogitAttributionResult:
    return DirectLogitAttributionResult(
        model_id=model_id,
        task=attribution.task,
        n=attribution.n,
        answer=attribution.answer,
        wrong=attribution.wrong,
        logit_difference=interval_view(attribution.logit_difference, _DIGITS),
        sum=interval_view(attribution.total, _DIGITS),
        remainder=round_number(attribution.remainder, 2),
        parts=[
            ContributionView(part=part.part, value=interval_view(part.value, _DIGITS))
            for part in attribution.top(top)
        ],
        accumulated=[round_number(value.mean, _DIGITS) for value in attribution.accumulated],
        warnings=[*notes, *attribution.warnings],
        figure=figure,
        total=len(attribution.contributions),
        truncated=top < len(attribution.contributions),
        cost=cost_view(attribution.cost),
    )
