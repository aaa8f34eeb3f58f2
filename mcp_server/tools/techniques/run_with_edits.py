"""Declarative edits of activations, and what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from mcp.types import CallToolResult
from pydantic import Field

from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import (
    DEFAULT_PAIRS,
    BoundedText,
    MetricChoice,
    ModelId,
    PairCount,
    Seed,
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
    from discovery.methods.edits import EditRun


EditList = Annotated[list[dict[str, Any]], Field(max_length=256)]


class TokenChangeView(Result):
    """A likely token, and its mean probability over pairs."""

    token: int
    text: str
    before: float | None
    after: float | None


class RunWithEditsResult(Listing):
    """What run_with_edits gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("tokens",)
    narrowing_hint: ClassVar[str] = "Lower `top`."

    model_id: str
    task: str
    n: int
    side: str
    metric: str
    before: IntervalView
    after: IntervalView
    change: IntervalView = Field(description="after − before, with its 95% interval over pairs.")
    effect: float | None = Field(
        description="Of m(clean) − m(corrupted): the share lost (side clean) or restored."
    )
    tokens: list[TokenChangeView]
    warnings: list[str]
    figure: Figure
    cost: CostView


async def run_with_edits(
    context: ToolContext,
    model_id: ModelId,
    edits: Annotated[
        EditList | str,
        Field(
            description="Objects with operation (zero, mean, resample, replace, add, scale), site "
            "(resid_pre|mid|post, attn_out, mlp_out, head_out, q, k, v, pattern), layer, head (or "
            "kv_head), positions (default all), source (resample: clean, corrupted, or a name in "
            "`prompts`), value (a vector), factor. Or the path of an edits.json."
        ),
    ],
    prompt: PromptChoice = None,
    task: TaskChoice = None,
    side: Annotated[
        Literal["clean", "corrupted"], Field(description="Which prompt of a pair is edited.")
    ] = "clean",
    prompts: Annotated[
        dict[str, BoundedText | TokenIds] | None, Field(description="Prompts by name.")
    ] = None,
    metric: MetricChoice = None,
    top: Annotated[int, Field(description="Tokens before and after.", ge=1, le=50)] = 5,
    pairs: PairCount = DEFAULT_PAIRS,
    seed: Seed = 0,
) -> Annotated[CallToolResult, RunWithEditsResult]:
    """Changes activations as the edits say, all in one forward pass, and compares the metric and
    the predictions with the unedited run.

    Use it for what no other tool does: several sites at once, single positions, a value from
    another prompt, a vector. Not for finding what matters (patch_sweep), and not for testing a set
    of heads (ablate_heads has controls). A cell of patch_sweep is `resample` with source corrupted
    on side clean (noising), or source clean on side corrupted (denoising). Cost: two forward passes
    per pair.

    Example: run_with_edits(model_id="bundled", task="ioi", edits=[{"operation": "resample",
    "site": "head_out", "layer": 2, "head": 0, "positions": ["end"], "source": "corrupted"}]).
    """
    require_one("run_with_edits", prompt, task)

    def measure(measurement: Measurement) -> tuple[RunWithEditsResult, bytes]:
        source = _edit_source(measurement, edits, side, prompts)
        subject, notes = load_subject(measurement, prompt, task, pairs, seed)
        run = lazy_discovery.run_with_edits(
            measurement.backend, source, metric=metric, top=top, **subject
        )
        request = (source, prompt, subject["task"], metric, top)
        uri, png = keep_picture(
            measurement,
            "run_with_edits",
            request,
            lambda: lazy_discovery.draw_token_changes(run.tokens, title=f"{run.task}: edits"),
        )
        return _make_result(model_id, run, uri, notes), png

    result, png = await run_measurement(context, model_id, f"run_with_edits {model_id}", measure)
    return answer_with_picture(context, result, result.figure, png)


def _edit_source(
    measurement: Measurement,
    edits: EditList | str,
    side: str,
    prompts: dict[str, Any] | None,
) -> Any:
    """Return the edits in the form that `discovery` takes; a file brings its own side."""
    if isinstance(edits, str):
        alternative = "Give the edits inline"
        return measurement.session.allowed_paths.resolve_text_file(edits, alternative)
    return {"side": side, "prompts": prompts or {}, "edits": edits}


def _make_result(model_id: str, run: EditRun, figure: str, notes: list[str]) -> RunWithEditsResult:
    return RunWithEditsResult(
        model_id=model_id,
        task=run.task,
        n=run.n,
        side=run.side,
        metric=run.metric,
        before=interval_view(run.before),
        after=interval_view(run.after),
        change=interval_view(run.change),
        effect=round_number(run.effect),
        tokens=[
            TokenChangeView(
                token=token.token,
                text=token.text,
                before=round_number(token.before),
                after=round_number(token.after),
            )
            for token in run.tokens
        ],
        warnings=[*notes, *run.warnings],
        figure=figure,
        total=len(run.tokens),
        cost=cost_view(run.cost),
    )
