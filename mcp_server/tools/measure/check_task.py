"""Does the model do the task?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from mcp.types import CallToolResult
from pydantic import Field

from discovery.sites import MetricName
from mcp_server.session import DeviceJob as Job
from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import (
    DEFAULT_PAIRS,
    ModelId,
    PairCount,
    Seed,
    TaskSource,
    ToolContext,
    load_task_with_notes,
)
from mcp_server.tools.result import CostView, Result, cost_view, round_number, to_call_result

if TYPE_CHECKING:
    from discovery.backends.base import Backend
    from discovery.methods.behaviour import BehaviourCheck
    from discovery.tasks.task import Task

MetricChoice = Annotated[
    MetricName | None,
    Field(description="What is measured at the answer; the task's own where left out."),
]


class LintView(Result):
    """What is odd about the pairs, without being an error."""

    warnings: list[str]


class IntervalView(Result):
    """A mean and its 95% interval."""

    mean: float | None
    low: float | None
    high: float | None


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
    reasons: list[str] = Field(description="What failed, where behaviour is false.")
    lint: LintView
    n: int
    n_discovery: int
    n_heldout: int
    split: str
    metric: str
    metric_clean: float | None
    metric_corrupted: float | None
    gap: IntervalView
    accuracy: float | None = Field(description="Answer beats wrong answer; chance is 0.5.")
    accuracy_low: float | None = Field(description="Its 95% lower bound.")
    best_constant: float | None = Field(description="Accuracy of always giving the same answer.")
    top1: float | None
    examples: list[PairView]
    cost: CostView


async def check_task(
    call: ToolContext,
    model_id: ModelId,
    task: TaskSource,
    metric: MetricChoice = None,
    pairs: PairCount = DEFAULT_PAIRS,
    seed: Seed = 0,
) -> Annotated[CallToolResult, CheckTaskResult]:
    """Checks prompt pairs and whether the model does the task at all: accuracy with its lower bound, the metric on clean and corrupted
    prompts, and what is odd about the pairs. Faulty pairs (unequal token counts, answers of several tokens) are an error that names the
    pair and the fix.

    Use it before any sweep: a circuit can only be found for a behaviour that is there. `behaviour` false means stop, or change pairs or
    model. It says nothing about where in the model the behaviour sits: patch_sweep. Cost: 2 forward passes per pair, about 1 s.

    Example: check_task(model_id="bundled", task="ioi") -> behaviour true, accuracy 0.97.
    """
    session = call.request_context.lifespan_context
    loaded = session.models.get(model_id)

    def job(work: Job) -> CheckTaskResult:
        read, notes = load_task_with_notes(session, loaded, task, pairs, seed)
        found = lazy_discovery.check_task(
            loaded.backend, read, metric=metric, memory=session.settings.memory, progress=work
        )
        return _make_result(model_id, loaded.backend, read, found, notes)

    return to_call_result(
        await session.devices.run(call, loaded.device, f"check_task {model_id}", job)
    )


def _make_result(
    model_id: str, model: Backend, task: Task, found: BehaviourCheck, notes: list[str]
) -> CheckTaskResult:
    return CheckTaskResult(
        model_id=model_id,
        task=task.name,
        fingerprint=task.fingerprint,
        behaviour=found.is_present,
        reasons=list(found.reasons),
        lint=LintView(warnings=[*notes, *task.warnings]),
        n=found.n,
        n_discovery=len(task.discovery),
        n_heldout=len(task.heldout),
        split=task.split_method,
        metric=found.metric,
        metric_clean=round_number(found.metric_clean),
        metric_corrupted=round_number(found.metric_corrupted),
        gap=IntervalView(
            mean=round_number(found.gap.mean),
            low=round_number(found.gap.low),
            high=round_number(found.gap.high),
        ),
        accuracy=round_number(found.accuracy),
        accuracy_low=round_number(found.accuracy_low),
        best_constant=round_number(found.best_constant),
        top1=round_number(found.top1),
        examples=[_pair_view(model, task, index) for index in range(min(3, len(task)))],
        cost=cost_view(found.cost),
    )


def _pair_view(model: Backend, task: Task, index: int) -> PairView:
    pair = task.pairs[index]

    def text(ids: tuple[int, ...]) -> str:
        told = model.tokenizer.decode(list(ids)) if model.tokenizer else " ".join(map(str, ids))
        return told if len(told) <= 400 else f"{told[:397]}..."

    return PairView(
        clean=text(pair.clean),
        corrupted=text(pair.corrupted),
        answer=text(pair.answer[:8]),
        wrong=text(pair.wrong[:8]),
    )
