"""Changing features: ablate, clamp or steer, and see what it does to the metric and to what the model writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from mcp.types import CallToolResult
from pydantic import BeforeValidator, Field, StrictInt

from mcp_server.errors import ServerError
from mcp_server.session import DeviceJob as Job
from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import (
    CONTROL_DIRECTIONS,
    DEFAULT_PAIRS,
    BoundedText,
    ModelId,
    PairCount,
    SaeName,
    TaskName,
    TokenIds,
    ToolContext,
    load_task_with_notes,
)
from mcp_server.tools.features.sae_top_features import opened
from mcp_server.tools.measure.check_task import IntervalView
from mcp_server.tools.result import CostView, Result, round_number, to_call_result
from mcp_server.tools.schema import refuse_bool

if TYPE_CHECKING:
    from discovery.methods.features.edit import FeatureEditResult
    from discovery.methods.features.generate import Continuation, GenerationResult


class MetricEffectView(Result):
    """What the change does to the task's metric."""

    task: str
    n: int
    metric: str
    metric_clean: float | None
    metric_base: float | None = Field(
        description="What the effect is counted from: clean, or the reconstruction where error is dropped."
    )
    metric_edited: float | None
    effect: IntervalView
    share: float | None = Field(description="Of clean − corrupted.")
    control_p: float | None = Field(
        description="By chance: equal changes along other features' directions that do as much, of 19."
    )
    variance_explained: float | None


class TextEffectView(Result):
    """What the model writes, greedily."""

    clean: str
    edited: str
    controls: list[str] = Field(description="The same change along other features' directions.")
    first_difference: int | None
    kl: float | None = Field(description="KL(clean ‖ edited) of the next token, in nats.")


class EditFeaturesResult(Result):
    """What edit_features gives."""

    warnings: list[str] = Field(description="A poor reconstruction stands first.")
    model_id: str
    sae: str
    operation: str
    error: str
    on_metric: MetricEffectView | None
    on_text: TextEffectView | None
    cost: CostView


FeatureAmount = Annotated[float, BeforeValidator(refuse_bool)]


async def edit_features(
    call: ToolContext,
    model_id: ModelId,
    features: Annotated[
        dict[int, FeatureAmount],
        Field(
            description='Amount of each, in its activation\'s units: {"1234": 0}.',
            min_length=1,
            max_length=100,
        ),
    ],
    sae: SaeName = None,
    operation: Annotated[
        Literal["set", "scale", "add"],
        Field(
            description="set to the amount (0 ablates, else clamps), scale by it, or add it (steers)."
        ),
    ] = "set",
    task: Annotated[
        TaskName | None,
        Field(description="Built-in task or path of a .jsonl: the effect on its metric."),
    ] = None,
    prompt: Annotated[
        BoundedText | TokenIds | None,
        Field(description="To be continued with and without the change."),
    ] = None,
    positions: Annotated[
        list[StrictInt | str] | None,
        Field(description="As in sae_top_features; for a prompt numbers alone.", max_length=500),
    ] = None,
    error: Annotated[
        Literal["keep", "drop"], Field(description="What the SAE does not explain.")
    ] = "keep",
    tokens: Annotated[int, Field(description="How many to write.", ge=1, le=200)] = 20,
    pairs: PairCount = DEFAULT_PAIRS,
) -> Annotated[CallToolResult, EditFeaturesResult]:
    """Ablates, clamps or steers features of a sparse autoencoder together, and measures what that does to a task's metric (with an
    interval, beside equal pushes along other features' directions) and to what the model writes.

    Use it to test what a feature does, after sae_top_features named it. Give task, prompt or both. A change that random directions
    make too (control_p, controls) says nothing of the feature. Cost: a few passes per pair; a pass per token written.

    Example: edit_features(model_id="bundled", features={"60": 0}, task="ioi").
    """
    session = call.request_context.lifespan_context
    loaded = session.models.get(model_id)
    if task is None and prompt is None:
        raise ServerError(
            "edit_features needs a task, a prompt, or both.",
            "Give a task for the effect on its metric, a prompt for text.",
        )

    def job(work: Job) -> EditFeaturesResult:
        source = session.allowed_paths.resolve_sae(sae)
        dictionary = opened(source, loaded.backend)
        on_metric, on_text, warnings, costs = None, None, [*dictionary.warnings], []
        how: dict[str, Any] = {
            "operation": operation,
            "positions": positions,
            "error": error,
            "progress": work,
        }
        if task is not None:
            read, notes = load_task_with_notes(session, loaded, task, pairs, 0)
            edited = lazy_discovery.edit_features(
                loaded.backend,
                read,
                dictionary,
                features,
                controls=CONTROL_DIRECTIONS,
                memory=session.settings.memory,
                **how,
            )
            on_metric, warnings, costs = (
                _metric_view(read.name, len(read), edited),
                [*edited.warnings, *notes],
                [edited.cost],
            )
        if prompt is not None:
            given = tuple(prompt) if isinstance(prompt, list) else prompt
            written = lazy_discovery.generate_with_features(
                loaded.backend, dictionary, given, features, tokens=tokens, **how
            )
            on_text, costs = _text_view(written), [*costs, written.cost]
        return EditFeaturesResult(
            warnings=warnings,
            model_id=model_id,
            sae=session.allowed_paths.format_path(source),
            operation=operation,
            error=error,
            on_metric=on_metric,
            on_text=on_text,
            cost=CostView(
                forward_equivalents=round_number(sum(one.forward_equivalents for one in costs), 6),
                seconds=round_number(sum(one.seconds for one in costs), 3),
            ),
        )

    return to_call_result(
        await session.devices.run(call, loaded.device, f"edit_features {model_id}", job)
    )


def _metric_view(task: str, n: int, found: FeatureEditResult) -> MetricEffectView:
    effect = found.effect
    return MetricEffectView(
        task=task,
        n=n,
        metric=found.metric,
        metric_clean=round_number(found.metric_clean),
        metric_base=round_number(found.metric_base),
        metric_edited=round_number(found.metric_edited),
        effect=IntervalView(
            mean=round_number(effect.mean),
            low=round_number(effect.low),
            high=round_number(effect.high),
        ),
        share=round_number(found.share),
        control_p=round_number(found.control.p, 3) if found.control else None,
        variance_explained=round_number(found.reconstruction.variance_explained),
    )


def _text_view(found: GenerationResult) -> TextEffectView:
    return TextEffectView(
        clean=_format_continuation(found.clean),
        edited=_format_continuation(found.edited),
        controls=[_format_continuation(other) for other in found.controls],
        first_difference=found.first_difference,
        kl=round_number(found.kl),
    )


def _format_continuation(written: Continuation) -> str:
    return " ".join(map(str, written.tokens)) if written.text is None else written.text
