"""The logit lens: at which layer the answer appears."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from mcp.types import CallToolResult
from pydantic import Field, StrictInt

from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import (
    DEFAULT_PAIRS,
    DetailLevel,
    MetricChoice,
    ModelId,
    PairCount,
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
    from discovery.methods.readout import LensReading, LogitLens

_DIGITS = 4


class LensLayerView(Result):
    """What is read at one layer's input; the last layer is the model's output."""

    layer: int
    position: int | str
    n: int
    metric: IntervalView
    probability: float | None = Field(description="Of the answer.")
    rank: float = Field(description="Median rank of the answer; 1 is the most likely.")
    agreement: float | None = Field(description="Share of pairs with the final prediction.")
    top: list[str]


class LogitLensResult(Listing):
    """What logit_lens gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("layers",)
    keeps_newest: ClassVar[bool] = True
    narrowing_hint: ClassVar[str] = "Ask for fewer positions or a smaller top, or for more detail."

    model_id: str
    task: str
    n: int
    metric: str
    answer: str | None
    wrong: str | None
    answer_layer: int | None = Field(
        description="From here on the answer's median rank is 1, at the last position asked for."
    )
    layers: list[LensLayerView]
    warnings: list[str]
    figure: Figure
    cost: CostView


async def logit_lens(
    context: ToolContext,
    model_id: ModelId,
    prompt: PromptChoice = None,
    task: TaskChoice = None,
    positions: Annotated[
        list[StrictInt | str] | None,
        Field(description="From 0, from the end, or labels; default: -1.", max_length=100),
    ] = None,
    answer: NamedToken = None,
    wrong: OtherToken = None,
    metric: MetricChoice = None,
    top: Annotated[int, Field(description="Tokens for each layer.", ge=1, le=50)] = 5,
    pairs: PairCount = DEFAULT_PAIRS,
    seed: Seed = 0,
    detail: DetailLevel = "concise",
) -> Annotated[CallToolResult, LogitLensResult]:
    """Reads the residual stream at each layer as if the model stopped there: metric, probability
    and rank of the answer, and the most likely tokens, with the model's own last norm and
    unembedding.

    Use it to see at which layer the answer appears. Early layers may not be readable this way, so
    a low rank there proves nothing; patch_sweep on resid_pre shows where the information is. Cost:
    a forward pass and an unembedding per layer for each pair, seconds.

    Example: logit_lens(model_id="bundled", task="ioi").
    """
    require_one("logit_lens", prompt, task)

    def measure(measurement: Measurement) -> tuple[LogitLensResult, bytes]:
        subject, notes = load_subject(measurement, prompt, task, pairs, seed)
        lens = lazy_discovery.logit_lens(
            measurement.backend,
            positions=positions,
            answer=answer,
            wrong=wrong,
            metric=metric,
            top=top,
            **subject,
        )
        request = (prompt, subject["task"], positions, answer, wrong, metric)
        readings = lens.at(lens.positions[-1])
        uri, png = keep_picture(
            measurement,
            "logit_lens",
            request,
            lambda: lazy_discovery.draw_lens(readings, lens.metric, title=f"{lens.task}: lens"),
        )
        return _make_result(model_id, lens, uri, notes), png

    result, png = await run_measurement(context, model_id, f"logit_lens {model_id}", measure)
    return answer_with_picture(context, result, result.figure, png, detailed=detail == "detailed")


def _make_result(model_id: str, lens: LogitLens, figure: str, notes: list[str]) -> LogitLensResult:
    return LogitLensResult(
        model_id=model_id,
        task=lens.task,
        n=lens.n,
        metric=lens.metric,
        answer=lens.answer,
        wrong=lens.wrong,
        answer_layer=lens.answer_layer,
        layers=[_layer_view(reading) for reading in lens.readings],
        warnings=[*notes, *lens.warnings],
        figure=figure,
        total=len(lens.readings),
        cost=cost_view(lens.cost),
    )


def _layer_view(reading: LensReading) -> LensLayerView:
    return LensLayerView(
        layer=reading.layer,
        position=reading.position,
        n=reading.n,
        metric=interval_view(reading.metric, _DIGITS),
        probability=round_number(reading.probability.mean, _DIGITS),
        rank=reading.rank,
        agreement=round_number(reading.agreement, _DIGITS),
        top=[token.text for token in reading.top],
    )
