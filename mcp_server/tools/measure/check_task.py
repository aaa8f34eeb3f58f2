"""Whether a model does a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from mcp.types import CallToolResult
from pydantic import Field

from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import (
    DEFAULT_PAIRS,
    MetricChoice,
    ModelId,
    PairCount,
    Seed,
    TaskSource,
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
    shorten_text,
    to_call_result,
)

if TYPE_CHECKING:
    from discovery.backends.base import Backend
    from discovery.methods.behaviour import BehaviourCheck
    from discovery.tasks.task import Task

_EXAMPLES_SHOWN = 3
_MAX_PROMPT_TEXT = 400  # characters
_MAX_ANSWER_TOKENS = 8  # of a set of answers


class LintView(Result):
    """What is odd about the pairs, without being an error."""

    warnings: list[str]


class PairView(Result):
    """One pair as the model reads it."""

    clean: str
    corrupted: str
    answer: str
    wrong: str


class CheckTaskResult(Result):
    """What check_task gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("examples", "reasons")

    model_id: str
    task: str
    fingerprint: str = Field(description="sha256 of the pairs.")
    behaviour: bool = Field(
        description="Whether there is something to explain. False: do not look for a circuit."
    )
    reasons: list[str] = Field(description="What failed, if behaviour is false.")
    lint: LintView
    n: int
    n_discovery: int
    n_heldout: int
    split: str
    metric: str
    metric_clean: float | None
    metric_corrupted: float | None
    gap: IntervalView
    accuracy: float | None = Field(
        description="How often the answer beats the wrong answer; chance is 0.5."
    )
    accuracy_low: float | None = Field(description="Its 95% lower bound.")
    best_constant: float | None = Field(description="Accuracy of always giving the same answer.")
    top1: float | None
    examples: list[PairView]
    cost: CostView


async def check_task(
    context: ToolContext,
    model_id: ModelId,
    task: TaskSource,
    metric: MetricChoice = None,
    pairs: PairCount = DEFAULT_PAIRS,
    seed: Seed = 0,
) -> Annotated[CallToolResult, CheckTaskResult]:
    """Checks prompt pairs, and whether the model does the task at all: accuracy with its lower
    bound, the metric on clean and corrupted prompts, and what is odd about the pairs. Faulty pairs
    (unequal token counts, answers of several tokens) are an error that names the pair and the fix.

    Use it before any sweep: a circuit can only be found for a behaviour that is there. `behaviour`
    false means: stop, or change the pairs or the model. Not for finding where in the model the
    behaviour sits: patch_sweep. Cost: 2 forward passes per pair, about 1 s.

    Example: check_task(model_id="bundled", task="ioi") -> behaviour true, accuracy 0.97.
    """

    def measure(measurement: Measurement) -> CheckTaskResult:
        loaded_task, notes = measurement.load_task(task, pairs, seed)
        check = lazy_discovery.check_task(
            measurement.backend,
            loaded_task,
            metric=metric,
            memory=measurement.memory,
            progress=measurement.job,
        )
        return _make_result(model_id, measurement.backend, loaded_task, check, notes)

    return to_call_result(
        await run_measurement(context, model_id, f"check_task {model_id}", measure)
    )


def _make_result(
    model_id: str, model: Backend, task: Task, check: BehaviourCheck, notes: list[str]
) -> CheckTaskResult:
    return CheckTaskResult(
        model_id=model_id,
        task=task.name,
        fingerprint=task.fingerprint,
        behaviour=check.is_present,
        reasons=list(check.reasons),
        lint=LintView(warnings=[*notes, *task.warnings]),
        n=check.n,
        n_discovery=len(task.discovery),
        n_heldout=len(task.heldout),
        split=task.split_method,
        metric=check.metric,
        metric_clean=round_number(check.metric_clean),
        metric_corrupted=round_number(check.metric_corrupted),
        gap=interval_view(check.gap),
        accuracy=round_number(check.accuracy),
        accuracy_low=round_number(check.accuracy_low),
        best_constant=round_number(check.best_constant),
        top1=round_number(check.top1),
        examples=[
            _pair_view(model, task, index) for index in range(min(_EXAMPLES_SHOWN, len(task)))
        ],
        cost=cost_view(check.cost),
    )


def _pair_view(model: Backend, task: Task, index: int) -> PairView:
    """Return a pair as text, or as token ids if the model has no tokenizer."""
    pair = task.pairs[index]

    def decode(tokens: tuple[int, ...]) -> str:
        if model.tokenizer:
            return shorten_text(model.tokenizer.decode(list(tokens)), _MAX_PROMPT_TEXT)
        return shorten_text(" ".join(map(str, tokens)), _MAX_PROMPT_TEXT)

    return PairView(
        clean=decode(pair.clean),
        corrupted=decode(pair.corrupted),
        answer=decode(pair.answer[:_MAX_ANSWER_TOKENS]),
        wrong=decode(pair.wrong[:_MAX_ANSWER_TOKENS]),
    )
