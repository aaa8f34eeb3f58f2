"""Changing features, and what that does to the metric and to what the model writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mcp.types import CallToolResult
from pydantic import BeforeValidator, Field, StrictInt

from mcp_server.errors import ServerError
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
)
from mcp_server.tools.measurement import Measurement, run_measurement
from mcp_server.tools.result import (
    CostView,
    IntervalView,
    Result,
    WorkDone,
    cost_view,
    interval_view,
    round_number,
    to_call_result,
)
from mcp_server.tools.schema import refuse_bool

if TYPE_CHECKING:
    from discovery.features import SAE
    from discovery.methods.features.edit import FeatureEditResult
    from discovery.methods.features.generate import Continuation, GenerationResult
    from discovery.tasks.task import Task


class MetricEffectView(Result):
    """What the change does to the task's metric."""

    task: str
    n: int
    metric: str
    metric_clean: float | None
    metric_base: float | None = Field(
        description="What the effect is counted from: clean, or the reconstruction if error is "
        "dropped."
    )
    metric_edited: float | None
    effect: IntervalView
    share: float | None = Field(description="Of clean − corrupted.")
    control_p: float | None = Field(
        description="p-value against equal changes along 19 other directions; at least 0.05."
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
EditOperation = Literal["set", "scale", "add"]
ErrorPolicy = Literal["keep", "drop"]


@dataclass(frozen=True, kw_only=True)
class _FeatureEdit:
    """What is changed: an amount for each feature, how it is applied, and at which positions."""

    amounts: dict[int, float]
    operation: EditOperation
    positions: list[int | str] | None
    error: ErrorPolicy


async def edit_features(
    context: ToolContext,
    model_id: ModelId,
    features: Annotated[
        dict[int, FeatureAmount],
        Field(
            description='Amount for each feature, in units of its activation: {"1234": 0}.',
            min_length=1,
            max_length=100,
        ),
    ],
    sae: SaeName = None,
    operation: Annotated[
        EditOperation,
        Field(
            description="set to the amount (0 ablates, else clamps), scale by it, or add it "
            "(steers)."
        ),
    ] = "set",
    task: Annotated[
        TaskName | None,
        Field(description="Built-in task or path of a .jsonl: gives the effect on its metric."),
    ] = None,
    prompt: Annotated[
        BoundedText | TokenIds | None,
        Field(description="Text to continue with and without the change."),
    ] = None,
    positions: Annotated[
        list[StrictInt | str] | None,
        Field(description="As in sae_top_features; for a prompt only numbers.", max_length=500),
    ] = None,
    error: Annotated[ErrorPolicy, Field(description="What the SAE does not explain.")] = "keep",
    tokens: Annotated[int, Field(description="How many tokens to write.", ge=1, le=200)] = 20,
    pairs: PairCount = DEFAULT_PAIRS,
) -> Annotated[CallToolResult, EditFeaturesResult]:
    """Ablates, clamps or steers features of a sparse autoencoder together, and measures what that
    does to a task's metric (with an interval, beside equal pushes along other features' directions)
    and to what the model writes.

    Use it to test what a feature does, after sae_top_features named it. Give a task, a prompt or
    both. Not as evidence by itself: a change that random directions make too (control_p, controls)
    says nothing of the feature. Cost: a few passes per pair, and a pass per token written.

    Example: edit_features(model_id="bundled", features={"60": 0}, task="ioi").
    """
    if task is None and prompt is None:
        raise ServerError(
            "edit_features needs a task, a prompt, or both.",
            "Give a task for the effect on its metric, a prompt for text.",
        )

    edit = _FeatureEdit(amounts=features, operation=operation, positions=positions, error=error)

    def measure(measurement: Measurement) -> EditFeaturesResult:
        dictionary, name = measurement.open_sae(sae)
        warnings = list(dictionary.warnings)
        on_metric = None
        on_text = None
        costs: list[WorkDone] = []
        if task is not None:
            loaded_task, notes = measurement.load_task(task, pairs, 0)
            edited = _edit_on_task(measurement, dictionary, edit, loaded_task)
            on_metric = _metric_view(loaded_task.name, len(loaded_task), edited)
            warnings = [*edited.warnings, *notes]
            costs.append(edited.cost)
        if prompt is not None:
            generated = _edit_on_prompt(measurement, dictionary, edit, prompt, tokens)
            on_text = _text_view(generated)
            costs.append(generated.cost)
        return EditFeaturesResult(
            warnings=warnings,
            model_id=model_id,
            sae=name,
            operation=operation,
            error=error,
            on_metric=on_metric,
            on_text=on_text,
            cost=cost_view(*costs),
        )

    return to_call_result(
        await run_measurement(context, model_id, f"edit_features {model_id}", measure)
    )


def _edit_on_task(
    measurement: Measurement, dictionary: SAE, edit: _FeatureEdit, task: Task
) -> FeatureEditResult:
    """Measure what the edit does to the task's metric."""
    return lazy_discovery.edit_features(
        measurement.backend,
        task,
        dictionary,
        edit.amounts,
        operation=edit.operation,
        positions=edit.positions,
        error=edit.error,
        controls=CONTROL_DIRECTIONS,
        memory=measurement.memory,
        progress=measurement.job,
    )


def _edit_on_prompt(
    measurement: Measurement,
    dictionary: SAE,
    edit: _FeatureEdit,
    prompt: str | list[int],
    tokens: int,
) -> GenerationResult:
    """Let the model continue a prompt with and without the edit."""
    positions: Any = edit.positions  # a label is refused by the function, with its own message
    return lazy_discovery.generate_with_features(
        measurement.backend,
        dictionary,
        tuple(prompt) if isinstance(prompt, list) else prompt,
        edit.amounts,
        tokens=tokens,
        operation=edit.operation,
        positions=positions,
        error=edit.error,
        progress=measurement.job,
    )


def _metric_view(task: str, n: int, edited: FeatureEditResult) -> MetricEffectView:
    return MetricEffectView(
        task=task,
        n=n,
        metric=edited.metric,
        metric_clean=round_number(edited.metric_clean),
        metric_base=round_number(edited.metric_base),
        metric_edited=round_number(edited.metric_edited),
        effect=interval_view(edited.effect),
        share=round_number(edited.share),
        control_p=round_number(edited.control.p, 3) if edited.control else None,
        variance_explained=round_number(edited.reconstruction.variance_explained),
    )


def _text_view(generated: GenerationResult) -> TextEffectView:
    return TextEffectView(
        clean=_format_continuation(generated.clean),
        edited=_format_continuation(generated.edited),
        controls=[_format_continuation(control) for control in generated.controls],
        first_difference=generated.first_difference,
        kl=round_number(generated.kl),
    )


def _format_continuation(continuation: Continuation) -> str:
    """Return the text, or the token ids if the model has no tokenizer."""
    if continuation.text is None:
        return " ".join(map(str, continuation.tokens))
    return continuation.text
