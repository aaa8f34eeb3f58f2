"""Linear probes with controls, and the removal of what they read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from mcp.types import CallToolResult
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import (
    BoundedText,
    ModelId,
    PairCount,
    PairList,
    TaskName,
    TokenIds,
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
from mcp_server.tools.technique import Figure, answer_with_picture, keep_picture

if TYPE_CHECKING:
    from discovery.methods.probes import DirectionRemoval, ProbeResult

_DEFAULT_PROBE_PAIRS = 120


class LabelledPrompt(BaseModel):
    """A prompt with its class."""

    model_config = ConfigDict(extra="forbid")

    prompt: BoundedText | TokenIds
    label: str
    template: str | None = None
    labels: dict[str, StrictInt] | None = None


class ProbeCellView(Result):
    """A probe at one layer and position, tested on templates that it was not trained on."""

    layer: int
    position: int | str
    accuracy: IntervalView
    shuffled: float | None = Field(description="Accuracy with shuffled labels.")
    selectivity: float | None = Field(description="accuracy − shuffled.")
    token: float | None = Field(description="Accuracy from the token at the position alone.")
    majority: float | None
    p: float | None = Field(description="Against the best of the three controls; Holm.")


class RemovalView(Result):
    """What is lost without the direction of the best probe."""

    layer: int
    position: int | str
    n: int
    change: IntervalView
    effect: float | None = Field(description="Share of m(clean) − m(corrupted).")
    control: str = Field(description="How 20 random directions change as much.")
    random_mean: float | None
    random_largest: float | None
    p: float | None
    variance_share: float | None
    is_used: bool


class ProbeToolResult(Listing):
    """What probe gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("cells",)
    narrowing_hint: ClassVar[str] = "Name fewer layers or positions."

    model_id: str
    task: str
    label: str
    site: str
    n: int
    classes: dict[str, int]
    cells: list[ProbeCellView] = Field(description="By layer, then position.")
    removal: RemovalView | None
    warnings: list[str]
    figure: Figure
    cost: CostView


async def probe(
    context: ToolContext,
    model_id: ModelId,
    task: Annotated[
        TaskName | PairList | None,
        Field(description="Built-in task, .jsonl file, or pairs."),
    ] = None,
    examples: Annotated[
        list[LabelledPrompt] | TaskName | None,
        Field(
            description='Instead: [{"prompt", "label", "template"}], or a .jsonl file of them.',
        ),
    ] = None,
    label: Annotated[
        str,
        Field(
            description="Of a task: side, answer, token:NAME (at a labelled position), or "
            "before:A,B (which comes first).",
        ),
    ] = "side",
    site: Annotated[
        Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"],
        Field(description="What is read."),
    ] = "resid_pre",
    layers: Annotated[list[StrictInt] | None, Field(description="Default: all.")] = None,
    positions: Annotated[list[StrictInt | str] | None, Field(description="Default: -1.")] = None,
    pairs: PairCount = _DEFAULT_PROBE_PAIRS,
) -> Annotated[CallToolResult, ProbeToolResult]:
    """Tests where logistic regression can read a label, on templates that it was not trained on,
    beside shuffled labels and the token alone. Of two classes, it then removes the best probe's
    direction, beside 20 random changes of equal size.

    Use it for "where is X known, and is it used?": accuracy alone shows no use, so quote `removal`.
    Cost: a pass per prompt, then 21 on up to 48 pairs.

    Example: probe(model_id="bundled", task="agreement", label="answer").
    """

    def measure(measurement: Measurement) -> tuple[ProbeToolResult, bytes]:
        loaded_task = None
        notes: list[str] = []
        if task is not None:
            loaded_task, notes = measurement.load_task(task, pairs, seed=0)
        result = lazy_discovery.probe(
            measurement.backend,
            loaded_task,
            examples=_example_source(measurement, examples),
            label=label,
            site=site,
            layers=layers,
            positions=positions or (-1,),
            memory=measurement.memory,
            progress=measurement.job,
        )
        request = (loaded_task, examples, label, site, layers, positions)
        uri, png = keep_picture(
            measurement,
            "probe",
            request,
            lambda: lazy_discovery.draw_probe(
                result.cells, title=f"{result.task}: probe for {result.label}"
            ),
        )
        return _make_result(model_id, result, uri, notes), png

    result, png = await run_measurement(context, model_id, f"probe {model_id}", measure)
    return answer_with_picture(context, result, result.figure, png)


def _example_source(measurement: Measurement, examples: list[LabelledPrompt] | str | None) -> Any:
    if examples is None:
        return None
    if isinstance(examples, str):
        alternative = "Give the prompts inline"
        return measurement.session.allowed_paths.resolve_text_file(examples, alternative)
    return [example.model_dump(exclude_none=True) for example in examples]


def _make_result(
    model_id: str, result: ProbeResult, figure: str, notes: list[str]
) -> ProbeToolResult:
    return ProbeToolResult(
        model_id=model_id,
        task=result.task,
        label=result.label,
        site=result.site,
        n=result.n,
        classes=result.classes,
        cells=[
            ProbeCellView(
                layer=cell.layer,
                position=cell.position,
                accuracy=interval_view(cell.accuracy),
                shuffled=round_number(cell.shuffled),
                selectivity=round_number(cell.selectivity),
                token=round_number(cell.token),
                majority=round_number(cell.majority),
                p=round_number(cell.p),
            )
            for cell in result.cells
        ],
        removal=_removal_view(result.removal),
        warnings=[*notes, *result.warnings],
        figure=figure,
        total=len(result.cells),
        cost=cost_view(result.cost),
    )


def _removal_view(removal: DirectionRemoval | None) -> RemovalView | None:
    if removal is None:
        return None
    return RemovalView(
        layer=removal.layer,
        position=removal.position,
        n=removal.n,
        change=interval_view(removal.change),
        effect=round_number(removal.effect),
        control=removal.control,
        random_mean=round_number(sum(removal.random) / len(removal.random)),
        random_largest=round_number(max(removal.random, key=abs)),
        p=round_number(removal.p),
        variance_share=round_number(removal.variance_share),
        is_used=removal.is_used,
    )
