"""Does the model do the task?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from mcp.types import CallToolResult
from pydantic import Field

from discovery.sites import MetricName
from mcp_server.session import Work as Job
from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import DRAWN, Call, Count, ModelId, Seed, TaskSource, drawn
from mcp_server.tools.result import Result, Work, answer, cost, number

if TYPE_CHECKING:
    from discovery.backends.base import Backend
    from discovery.methods.behaviour import Behaviour
    from discovery.tasks.task import Task

Metric = Annotated[MetricName | None, Field(description="What is measured at the answer; the task's own where left out.")]


class Lint(Result):
    """What is odd about the pairs, without being an error."""

    warnings: list[str]


class Interval(Result):
    """A mean and its 95% interval."""

    mean: float | None
    low: float | None
    high: float | None


class Example(Result):
    """One pair as the model reads it."""

    clean: str
    corrupted: str
    answer: str
    wrong: str


class Checked(Result):
    """What check_task gives."""

    lists: ClassVar[tuple[str, ...]] = ("examples", "reasons")

    model_id: str
    task: str
    fingerprint: str = Field(description="sha256 of the pairs.")
    behaviour: bool = Field(description="Whether there is something to explain. False: do not look for a circuit.")
    reasons: list[str] = Field(description="What failed, where behaviour is false.")
    lint: Lint
    n: int
    n_discovery: int
    n_heldout: int
    split: str
    metric: str
    metric_clean: float | None
    metric_corrupted: float | None
    gap: Interval
    accuracy: float | None = Field(description="Answer beats wrong answer; chance is 0.5.")
    accuracy_low: float | None = Field(description="Its 95% lower bound.")
    best_constant: float | None = Field(description="Accuracy of always giving the same answer.")
    top1: float | None
    examples: list[Example]
    cost: Work


async def check_task(
    call: Call, model_id: ModelId, task: TaskSource, metric: Metric = None, pairs: Count = DRAWN, seed: Seed = 0
) -> Annotated[CallToolResult, Checked]:
    """Checks prompt pairs and whether the model does the task at all: accuracy with its lower bound, the metric on clean and corrupted
    prompts, and what is odd about the pairs. Faulty pairs (unequal token counts, answers of several tokens) are an error that names the
    pair and the fix.

    Use it before any sweep: a circuit can only be found for a behaviour that is there. `behaviour` false means stop, or change pairs or
    model. It says nothing about where in the model the behaviour sits: patch_sweep. Cost: 2 forward passes per pair, about 1 s.

    Example: check_task(model_id="bundled", task="ioi") -> behaviour true, accuracy 0.97.
    """
    session = call.request_context.lifespan_context
    loaded = session.models.get(model_id)

    def job(work: Job) -> Checked:
        read, notes = drawn(session, loaded, task, pairs, seed)
        found = lazy_discovery.check_task(loaded.backend, read, metric=metric, memory=session.settings.memory, progress=work)
        return _checked(model_id, loaded.backend, read, found, notes)

    return answer(await session.devices.run(call, loaded.device, f"check_task {model_id}", job))


def _checked(model_id: str, model: Backend, task: Task, found: Behaviour, notes: list[str]) -> Checked:
    return Checked(
        model_id=model_id,
        task=task.name,
        fingerprint=task.fingerprint,
        behaviour=found.present,
        reasons=list(found.reasons),
        lint=Lint(warnings=[*notes, *task.warnings]),
        n=found.n,
        n_discovery=len(task.discovery),
        n_heldout=len(task.heldout),
        split=task.split_method,
        metric=found.metric,
        metric_clean=number(found.metric_clean),
        metric_corrupted=number(found.metric_corrupted),
        gap=Interval(mean=number(found.gap.mean), low=number(found.gap.low), high=number(found.gap.high)),
        accuracy=number(found.accuracy),
        accuracy_low=number(found.accuracy_low),
        best_constant=number(found.constant),
        top1=number(found.top1),
        examples=[_example(model, task, index) for index in range(min(3, len(task)))],
        cost=cost(found.cost),
    )


def _example(model: Backend, task: Task, index: int) -> Example:
    pair = task.pairs[index]

    def text(ids: tuple[int, ...]) -> str:
        told = model.tokenizer.decode(list(ids)) if model.tokenizer else " ".join(map(str, ids))
        return told if len(told) <= 400 else f"{told[:397]}..."

    return Example(clean=text(pair.clean), corrupted=text(pair.corrupted), answer=text(pair.answer[:8]), wrong=text(pair.wrong[:8]))
