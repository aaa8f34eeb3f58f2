"""Where attention heads look from one position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from mcp.types import CallToolResult
from pydantic import Field, StrictInt

from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import (
    DEFAULT_PAIRS,
    DetailLevel,
    ModelId,
    NodeNames,
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
    PromptChoice,
    TaskChoice,
    answer_with_picture,
    keep_picture,
    load_subject,
    require_one,
)

if TYPE_CHECKING:
    from discovery.methods.heads import AttentionPatterns, HeadAttention

_DIGITS = 3


class SourceView(Result):
    """What a head looks at, and how much."""

    source: int | str
    text: str | None = Field(description="The token there, of a prompt.")
    share: IntervalView


class HeadAttentionView(Result):
    """Where one head looks."""

    node: str
    entropy: float | None = Field(description="In nats.")
    uniform_entropy: float | None = Field(description="The largest there can be.")
    first: float | None = Field(description="Share on the first token.")
    sources: list[SourceView]


class AttentionPatternsResult(Listing):
    """What attention_patterns gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("heads", "tokens")
    narrowing_hint: ClassVar[str] = "Name the heads in nodes, or ask for a smaller top."

    model_id: str
    task: str
    n: int
    position: int | str
    counts: str = Field(description="What sources are: label, position, or offset from here.")
    heads: list[HeadAttentionView] = Field(description="The largest share on one source first.")
    tokens: list[str]
    warnings: list[str]
    figure: Figure
    cost: CostView


async def attention_patterns(
    context: ToolContext,
    model_id: ModelId,
    prompt: PromptChoice = None,
    task: TaskChoice = None,
    nodes: NodeNames | None = None,
    position: Annotated[
        StrictInt | str, Field(description="From where they look: a position or a label.")
    ] = -1,
    top: Annotated[int, Field(description="Sources for each head.", ge=1, le=50)] = 3,
    pairs: PairCount = DEFAULT_PAIRS,
    seed: Seed = 0,
    detail: DetailLevel = "concise",
) -> Annotated[CallToolResult, AttentionPatternsResult]:
    """Shows where heads look from one position: the share of each label of a task or each token of
    a prompt, how spread out it is, and the share on the first token. With `nodes` it adds a
    picture of the whole patterns on the first pair.

    Use it to see what a head reads. Not as a proof that it matters: heads that look at the first
    token mostly rest, and ablate_heads measures what is lost. Cost: one forward pass per pair.

    Example: attention_patterns(model_id="bundled", task="ioi", nodes=["a2.h0"]).
    """
    require_one("attention_patterns", prompt, task)

    def measure(measurement: Measurement) -> tuple[AttentionPatternsResult, bytes | None]:
        subject, notes = load_subject(measurement, prompt, task, pairs, seed)
        looks = lazy_discovery.attention_patterns(
            measurement.backend, nodes=nodes, position=position, top=top, **subject
        )
        uri = png = None
        patterns = looks.patterns
        if patterns is not None:
            names = [looked.node for looked in looks.heads]
            uri, png = keep_picture(
                measurement,
                "attention_patterns",
                (prompt, subject["task"], nodes),
                lambda: lazy_discovery.draw_pattern(patterns.numpy(), names, looks.tokens),
            )
        return _make_result(model_id, looks, uri, notes), png

    description = f"attention_patterns {model_id}"
    result, png = await run_measurement(context, model_id, description, measure)
    return answer_with_picture(context, result, result.figure, png, detailed=detail == "detailed")


def _make_result(
    model_id: str, looks: AttentionPatterns, figure: str | None, notes: list[str]
) -> AttentionPatternsResult:
    ranked = sorted(looks.heads, key=lambda looked: -_largest_share(looked))
    return AttentionPatternsResult(
        model_id=model_id,
        task=looks.task,
        n=looks.n,
        position=looks.position,
        counts=looks.counts,
        heads=[_head_view(looked) for looked in ranked],
        tokens=list(looks.tokens),
        warnings=[*notes, *looks.warnings],
        figure=figure,
        total=len(looks.heads),
        cost=cost_view(looks.cost),
    )


def _largest_share(looked: HeadAttention) -> float:
    return max((source.share.mean for source in looked.sources), default=0.0)


def _head_view(looked: HeadAttention) -> HeadAttentionView:
    return HeadAttentionView(
        node=looked.node,
        entropy=round_number(looked.entropy.mean, _DIGITS),
        uniform_entropy=round_number(looked.uniform_entropy, _DIGITS),
        first=round_number(looked.first.mean, _DIGITS),
        sources=[
            SourceView(
                source=source.source,
                text=source.text,
                share=interval_view(source.share, _DIGITS),
            )
            for source in looked.sources
        ],
    )
