"""What one head does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from mcp.types import CallToolResult
from pydantic import Field

from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import (
    DEFAULT_PAIRS,
    HeadName,
    MetricChoice,
    ModelId,
    PairCount,
    PairList,
    Seed,
    TaskName,
    ToolContext,
)
from mcp_server.tools.measurement import Measurement, run_measurement
from mcp_server.tools.result import (
    CostView,
    IntervalView,
    Result,
    cost_view,
    interval_view,
    round_number,
)
from mcp_server.tools.technique import Figure, answer_with_picture, keep_picture

if TYPE_CHECKING:
    from discovery.methods.heads import HeadInterpretation, HeadStatement

_DIGITS = 3
_MAX_ENTRIES = 5


class StatementView(Result):
    """One thing that was tested."""

    aspect: str
    claim: str
    value: IntervalView
    chance: float | None = Field(description="Of needed: the most that a random head causes.")
    p: float | None = Field(description="Corrected.")


class InterpretHeadResult(Result):
    """What interpret_head gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("looks_at", "writes", "matches")

    model_id: str
    node: str
    task: str
    n: int
    metric: str
    summary: str = Field(description="What holds; or that nothing is known.")
    known: list[StatementView]
    not_known: list[StatementView] = Field(description="Tested, and not beyond chance.")
    looks_at: list[str] = Field(description="From the answer position, the largest share first.")
    writes: list[str] = Field(description="OV: read token → written token, the largest first.")
    matches: list[str] = Field(description="QK: looking token → token looked at.")
    reads_from: list[str] = Field(description="Composition with earlier heads, by z.")
    writes_to: list[str] = Field(description="Composition with later heads, by z.")
    warnings: list[str]
    figure: Figure
    cost: CostView


async def interpret_head(
    context: ToolContext,
    model_id: ModelId,
    node: HeadName,
    task: Annotated[TaskName | PairList, Field(description="As in check_task.")],
    metric: MetricChoice = None,
    controls: Annotated[int, Field(description="Random heads to compare with.", ge=1, le=200)] = 19,
    pairs: PairCount = DEFAULT_PAIRS,
    seed: Seed = 0,
) -> Annotated[CallToolResult, InterpretHeadResult]:
    """Measures what one head does on a task: its kinds, where it looks, what it matches (QK) and
    writes (OV, and to the answer itself), and whether it is needed (denoising, noising, both
    ablations, beside random heads). Only what is beyond chance after correction is `known`.

    Use it to answer "what does this head do?". If nothing is known, say so. Not for finding heads:
    patch_sweep with site head_out ranks them. Cost: head_kinds (one pass per sequence), some dozen
    passes per pair; seconds on a small model, minutes on a large one.

    Example: interpret_head(model_id="bundled", node="a2.h0", task="ioi").
    """

    def measure(measurement: Measurement) -> tuple[InterpretHeadResult, bytes]:
        loaded, notes = measurement.load_task(task, pairs, seed)
        found = lazy_discovery.interpret_head(
            measurement.backend,
            node,
            loaded,
            metric=metric,
            controls=controls,
            seed=seed,
            memory=measurement.memory,
            progress=measurement.job,
        )
        title = f"{found.node} on {found.task}"
        uri, png = keep_picture(
            measurement,
            "interpret_head",
            (node, loaded, metric, controls, seed),
            lambda: lazy_discovery.draw_bar_panels(found.panels(), title=title),
        )
        return _make_result(model_id, found, uri, notes), png

    result, png = await run_measurement(context, model_id, f"interpret_head {model_id}", measure)
    return answer_with_picture(context, result, result.figure, png)


def _make_result(
    model_id: str, found: HeadInterpretation, figure: str, notes: list[str]
) -> InterpretHeadResult:
    weights = found.weights
    matches = [] if weights.qk is None else weights.qk.largest[:_MAX_ENTRIES]
    return InterpretHeadResult(
        model_id=model_id,
        node=found.node,
        task=found.task,
        n=found.n,
        metric=found.metric,
        summary=found.summary,
        known=[_statement_view(statement) for statement in found.known],
        not_known=[_statement_view(statement) for statement in found.not_known],
        looks_at=[f"{share.source}: {share.share.mean:.2f}" for share in found.looks_at],
        writes=[str(entry) for entry in weights.ov.largest[:_MAX_ENTRIES]],
        matches=[str(entry) for entry in matches],
        reads_from=[str(pair) for pair in weights.reads_from],
        writes_to=[str(pair) for pair in weights.writes_to],
        warnings=[*notes, *found.warnings],
        figure=figure,
        cost=cost_view(found.cost),
    )


def _statement_view(statement: HeadStatement) -> StatementView:
    return StatementView(
        aspect=statement.aspect,
        claim=statement.claim,
        value=interval_view(statement.value, _DIGITS),
        chance=round_number(statement.chance, _DIGITS),
        p=round_number(statement.p, 2),
    )
