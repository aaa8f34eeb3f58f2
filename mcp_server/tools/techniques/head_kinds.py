"""Which kinds of heads a model has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from mcp.types import CallToolResult
from pydantic import Field

from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import (
    DEFAULT_PAIRS,
    DetailLevel,
    ModelId,
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
    round_numbers,
)
from mcp_server.tools.technique import Figure, answer_with_picture, keep_picture

if TYPE_CHECKING:
    from discovery.methods.heads import AblationCheck, HeadKind, HeadKinds, HeadScore

_DIGITS = 3
_MAX_HEADS = {"concise": 12, "detailed": 1000}  # named heads of a kind


class HeadScoreView(Result):
    """How far one head is of a kind."""

    node: str
    score: IntervalView
    chance: float | None
    p: float | None = Field(description="Corrected for all heads and kinds.")


class AblationCheckView(Result):
    """What is lost without the named heads, and without random ones."""

    measure: str
    n_heads: int
    intact: float | None
    change: IntervalView
    controls: list[float | None]
    p: float | None


class HeadKindView(Result):
    """One kind of heads."""

    kind: str
    minimum_effect: float = Field(description="Above chance.")
    n_named: int
    heads: list[HeadScoreView] = Field(description="The named heads, the largest score first.")
    not_named: list[HeadScoreView]
    check: AblationCheckView | None


class HeadKindsResult(Result):
    """What head_kinds gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("warnings",)

    model_id: str
    n_heads: int
    n_sequences: int
    half: int = Field(description="Tokens of one copy.")
    kinds: list[HeadKindView]
    warnings: list[str]
    figure: Figure
    cost: CostView


async def head_kinds(
    context: ToolContext,
    model_id: ModelId,
    task: Annotated[
        TaskName | PairList | None,
        Field(description="Also find name movers here: ioi, or pairs with labels IO and S2."),
    ] = None,
    sequences: Annotated[
        int, Field(description="Sequences of repeated random tokens.", ge=4, le=200)
    ] = 24,
    controls: Annotated[
        int, Field(description="Random sets for each causal check; 0: no checks.", ge=0, le=100)
    ] = 10,
    seed: Seed = 0,
    detail: DetailLevel = "concise",
) -> Annotated[CallToolResult, HeadKindsResult]:
    """Names the previous-token, first-token, local, duplicate-token, induction, copying and
    anti-copying heads, each beside its chance level. A head is named only beyond chance, corrected
    for all heads and kinds, and above a minimum effect. For each kind: what is lost on repeated
    tokens without its heads, beside as many random heads. With `task` also name movers, negative
    name movers and S-inhibition heads.

    Use it to learn which heads a model has, before or after a circuit. A kind says what a head does
    on random tokens, not that a task needs it: ablate_heads. Cost: about 50 passes and 12 for each
    kind of 50 tokens; seconds for small models.

    Example: head_kinds(model_id="bundled").
    """

    def measure(measurement: Measurement) -> tuple[HeadKindsResult, bytes]:
        loaded = None
        if task is not None:
            loaded, _ = measurement.load_task(task, DEFAULT_PAIRS, seed)
        kinds = lazy_discovery.head_kinds(
            measurement.backend,
            task=loaded,
            sequences=sequences,
            controls=controls,
            seed=seed,
            memory=measurement.memory,
            progress=measurement.job,
        )
        scores = {name: values.numpy() for name, values in kinds.scores.items()}
        uri, png = keep_picture(
            measurement,
            "head_kinds",
            (loaded, sequences, seed),
            lambda: lazy_discovery.draw_head_kinds(scores),
        )
        return _make_result(model_id, kinds, uri, _MAX_HEADS[detail]), png

    result, png = await run_measurement(context, model_id, f"head_kinds {model_id}", measure)
    return answer_with_picture(context, result, result.figure, png, detailed=detail == "detailed")


def _make_result(model_id: str, kinds: HeadKinds, figure: str, limit: int) -> HeadKindsResult:
    return HeadKindsResult(
        model_id=model_id,
        n_heads=kinds.n_heads,
        n_sequences=kinds.n_sequences,
        half=kinds.half,
        kinds=[_kind_view(kind, limit) for kind in kinds.kinds],
        warnings=list(kinds.warnings),
        figure=figure,
        cost=cost_view(kinds.cost),
    )


def _kind_view(kind: HeadKind, limit: int) -> HeadKindView:
    return HeadKindView(
        kind=kind.kind,
        minimum_effect=kind.minimum_effect,
        n_named=len(kind.heads),
        heads=[_score_view(score) for score in kind.heads[:limit]],
        not_named=[_score_view(score) for score in kind.runners_up],
        check=None if kind.check is None else _check_view(kind.check),
    )


def _score_view(score: HeadScore) -> HeadScoreView:
    return HeadScoreView(
        node=score.node,
        score=interval_view(score.score, _DIGITS),
        chance=round_number(score.chance, _DIGITS),
        p=round_number(score.p, 2),
    )


def _check_view(check: AblationCheck) -> AblationCheckView:
    return AblationCheckView(
        measure=check.measure,
        n_heads=check.n_heads,
        intact=round_number(check.intact, _DIGITS),
        change=interval_view(check.change, _DIGITS),
        controls=round_numbers(list(check.controls), _DIGITS),
        p=round_number(check.p, _DIGITS),
    )
