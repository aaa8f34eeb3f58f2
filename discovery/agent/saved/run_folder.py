"""What a run's folder says about the run: its settings, its task, its model and its last state.

`discover` writes these values; resuming a run, verifying it and adding features to it read them
back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import ValidationError

from discovery.agent.state import State
from discovery.backends.base import Backend
from discovery.backends.loading.load_arguments import LoadArguments, reload_model
from discovery.errors import StoreError
from discovery.graph import JsonModel, RulesVersion
from discovery.graph.base import locate_first_error
from discovery.sites import MetricName, Universe
from discovery.store import Run
from discovery.tasks import load_task
from discovery.tasks.loader import with_reference
from discovery.tasks.pairs import PromptPair
from discovery.tasks.reference import ReferencePrompt
from discovery.tasks.task import SplitName, Task


class RunSettings(JsonModel):
    """The settings of a run, as run.json keeps them under `configuration`.

    Attributes:
        metric: the metric that was asked for; None means the task's own, `task_metric`.
        seed: the seed of every random choice.
        universe: what can be ablated: "all" heads and MLPs, or "heads".
        budget: the most forward-pass equivalents that the run may take; None means no limit.
        memory: the most bytes that the run may take beside the model; None means what is free.
        exhaustive: whether every cell of a sweep is measured, whatever it costs.
        task_name: the name of the task.
        task_metric: the task's own metric.
        split_method: how the task's pairs were divided, in words.
        rules: the version of the rules of evaluation that the run began under. If it is resumed, it
            goes on under them. Runs that recorded none began under version 1.
        pairs: the fingerprint of the pairs; None in runs that did not record it yet.
        reference_from: the built-in task that draws the reference prompts; None if they are the
            corrupted prompts of both splits and the reference lines.
        load: how the model was loaded.
    """

    metric: MetricName | None = None
    seed: int = 0
    universe: Universe = "all"
    budget: float | None = None
    memory: int | None = None
    exhaustive: bool = False
    task_name: str
    task_metric: MetricName
    split_method: str
    rules: RulesVersion = 1
    pairs: str | None = None
    reference_from: str | None = None
    load: LoadArguments


class SavedPair(JsonModel):
    """One line of task.jsonl: a prompt pair in token ids, and the split that it is in.

    Attributes:
        clean: the token ids of the clean prompt.
        corrupted: the token ids of the corrupted prompt; as many as of the clean one.
        answer: the token ids of the right answers.
        wrong: the token ids of the wrong answers.
        template: the name of the pair's template; "" if the task names none.
        labels: the position of each label, counted from 0.
        split: "discovery", "heldout", or None for a repeat of another pair.
    """

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answer: tuple[int, ...]
    wrong: tuple[int, ...]
    template: str
    labels: Mapping[str, int]
    split: SplitName | None


class SavedReference(JsonModel):
    """A line of task.jsonl that only serves mean ablation: a corrupted prompt in token ids.

    Attributes:
        corrupted: the token ids.
        template: the name of the prompt's template; "" if the task names none.
        labels: the position of each label, counted from 0.
        role: which way round it has the roles that the corruption exchanges; "" if unknown.
        use: what the line is for.
    """

    corrupted: tuple[int, ...]
    template: str
    labels: Mapping[str, int]
    role: str = ""
    use: Literal["reference"] = "reference"


def describe_pairs(
    task: Task, reference: Sequence[ReferencePrompt] | None = None
) -> list[dict[str, Any]]:
    """Return the lines of task.jsonl for a task.

    The pairs come first, then the reference prompts that are no pair's corrupted prompt.

    Args:
        task: the task.
        reference: the reference prompts that are in use; None means those that the task uses at
            first.
    """
    saved = [
        SavedPair(
            clean=pair.clean,
            corrupted=pair.corrupted,
            answer=pair.answer,
            wrong=pair.wrong,
            template=pair.template,
            labels=pair.labels,
            split=split,
        )
        for pair, split in zip(task.pairs, task.splits, strict=True)
    ]
    if reference is None:
        source = task.reference_source
        reference = source.draw(source.per_group)
    own = {pair.as_reference.key for pair in task.pairs}
    prompts = [
        SavedReference(
            corrupted=prompt.tokens,
            template=prompt.template,
            labels=prompt.labels,
            role=prompt.role,
        )
        for prompt in reference
        if prompt.key not in own
    ]
    return [line.model_dump(mode="json") for line in (*saved, *prompts)]


def save_reference(run: Run, task: Task, prompts: Sequence[ReferencePrompt]) -> None:
    """Write task.jsonl again, with the reference prompts that are in use now.

    A run that is resumed or verified uses these prompts. Call it whenever `settle_reference` has
    drawn more of them, before anything is measured with their means.
    """
    run.save_pairs(describe_pairs(task, prompts))


def read_settings(run: Run) -> RunSettings:
    """Return the settings that a run began with.

    Raises:
        StoreError: if run.json holds no settings that this version understands.
    """
    try:
        return RunSettings.model_validate(run.record.configuration)
    except ValidationError as fault:
        place, message = locate_first_error(fault)
        raise StoreError(
            f"The configuration of run {run.id} is damaged at {place}.",
            "Start a new run.",
            detail=message,
        ) from None


def read_last_state(run: Run) -> State:
    """Return the state after the last finished stage; an empty state if no stage was finished.

    Raises:
        StoreError: if events.jsonl holds a state that this version does not understand.
    """
    for event in reversed(run.events()):
        if "state" in event:
            return _parse_state(run, event["state"])
    return State()


def read_states(run: Run) -> list[State]:
    """Return every state that the run has been in, in order.

    Raises:
        StoreError: if events.jsonl holds a state that this version does not understand.
    """
    return [_parse_state(run, event["state"]) for event in run.events() if "state" in event]


def _parse_state(run: Run, state: object) -> State:
    try:
        return State.model_validate(state)
    except ValidationError:
        raise StoreError(
            f"events.jsonl of run {run.id} holds a damaged state.", "Start a new run."
        ) from None


def read_saved_task(run: Run, model: Backend) -> Task:
    """Return the task of a run, with the very pairs and splits that task.jsonl holds.

    Raises:
        StoreError: if task.jsonl is missing or damaged.
    """
    settings = read_settings(run)
    try:
        lines = run.load_pairs()
        saved = [SavedPair.model_validate(line) for line in lines if "use" not in line]
        references = [SavedReference.model_validate(line) for line in lines if "use" in line]
    except ValidationError as fault:
        place, message = locate_first_error(fault)
        raise StoreError(
            f"task.jsonl of run {run.id} is damaged at {place}.",
            "Start a new run.",
            detail=message,
        ) from None
    pairs = [
        PromptPair(
            clean=pair.clean,
            corrupted=pair.corrupted,
            answer=pair.answer,
            wrong=pair.wrong,
            template=pair.template,
            labels=pair.labels,
        )
        for pair in saved
    ]
    task = Task(
        name=settings.task_name,
        pairs=load_task(pairs, model, seed=settings.seed).pairs,
        splits=tuple(pair.split for pair in saved),
        split_method=settings.split_method,
        metric=settings.task_metric,
        seed=settings.seed,
    )
    prompts = tuple(
        ReferencePrompt(
            tokens=line.corrupted, template=line.template, labels=line.labels, role=line.role
        )
        for line in references
    )
    return with_reference(task, settings.reference_from, model.tokenizer, prompts)


def reload_model_and_task(run: Run) -> tuple[Backend, Task]:
    """Load the model and the very pairs of a run again.

    Raises:
        StoreError: if the settings or the pairs are damaged, or if the model's weights have
            changed since the run began.
    """
    read_settings(run)  # damaged settings are reported before the model is loaded
    model = reload_model(run)
    return model, read_saved_task(run, model)
