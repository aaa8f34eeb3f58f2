"""`discover` and `resume`: folding the stages over the state, with a journal that a kill cannot damage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from discovery.agent.context import OnEvent, RunContext
from discovery.agent.outputs import write_record
from discovery.agent.saved_run import LoadArguments, RunSettings
from discovery.agent.stages import STAGES
from discovery.agent.state import State
from discovery.backends.base import Backend
from discovery.backends.hardware.memory import is_out_of_memory, read_peak_memory
from discovery.backends.loading.load_arguments import load_arguments, reload
from discovery.engine import Meter
from discovery.errors import BudgetError, MeasurementError, StoreError
from discovery.graph import CircuitGraph, Cost
from discovery.progress import ProgressCallback
from discovery.sites import MetricName, Universe
from discovery.store import (
    ModelSource,
    Run,
    collect_provenance,
    create_run,
    open_run,
    record_outcome,
    utc_timestamp,
)
from discovery.tasks import load_task
from discovery.tasks.pairs import PromptPair
from discovery.tasks.task import EncodedPair, SplitName, Task

SPLIT_BY_NAME: dict[str | None, SplitName | None] = {
    "discovery": "discovery",
    "heldout": "heldout",
    None: None,
}


@dataclass(frozen=True)
class DiscoveryResult:
    """A finished run.

    Attributes:
        path: its folder. circuit: the record, as in circuit.json.
    """

    run_id: str
    path: Path
    circuit: CircuitGraph


def discover(
    model: Backend,
    task: Task,
    *,
    metric: MetricName | None = None,
    seed: int = 0,
    universe: Universe = "all",
    budget: float | None = None,
    memory: int | None = None,
    exhaustive: bool = False,
    runs_dir: Path | str | None = None,
    progress: ProgressCallback | None = None,
    on_event: OnEvent | None = None,
    on_begin: Callable[[str], None] | None = None,
    command: str | None = None,
    load: Mapping[str, Any] | None = None,
) -> DiscoveryResult:
    """Find the circuit behind a behaviour and validate it.

    Args:
        metric: the task's own where None.
        seed: of every random choice.
        universe: "all" heads and MLPs, or "heads" with MLPs kept.
        budget: forward-pass equivalents for the whole run, summed over prompts; where it ends early the record says so.
        on_begin: told the run's id once its folder is there and can be resumed, before anything is measured.
        load: how the model and task were opened, so that `resume` can open them again.

    Returns:
        The run, whatever its verdict.

    Raises:
        MeasurementError: unknown choices, or a split without pairs.
        Interrupted: stopped from outside; `run_id` says what to resume.
    """
    _check_arguments(model, task, metric, universe, budget)
    settings = RunSettings(
        metric=metric,
        seed=seed,
        universe=universe,
        budget=budget,
        memory=memory,
        exhaustive=exhaustive,
        task_name=task.name,
        task_metric=task.metric,
        split_method=task.split_method,
        pairs=task.fingerprint,
        load=LoadArguments.model_validate(load or load_arguments(model)),
    )
    info = model.info
    source = ModelSource(
        name=info.name, source=info.source, revision=info.revision, fingerprint=info.fingerprint
    )
    made = collect_provenance(seed, info.remote or info.device, command, utc_timestamp())
    with create_run(
        runs_dir,
        task.name,
        source,
        settings.model_dump(mode="json"),
        provenance=made,
        pairs=_task_lines(task),
    ) as run:
        if on_begin is not None:
            on_begin(run.id)
        return _run_stages(_make_context(run, settings, model, task, progress, on_event), State())


def resume(
    run_id: str,
    *,
    runs_dir: Path | str | None = None,
    progress: ProgressCallback | None = None,
    on_event: OnEvent | None = None,
) -> DiscoveryResult:
    """Go on with a run that was interrupted; a finished one is returned as it is.

    Raises:
        StoreError: where there is no such run, another process writes to it, or its model is not the one it began with.
    """
    finished = open_run(runs_dir, run_id)  # for reading: also where one may not write
    if finished.record.kind != "discovery":
        raise StoreError(
            f"The run {run_id} is the training of an SAE.",
            f"Go on with it: circuit-scout sae train --resume {run_id}",
        )
    if finished.record.status == "completed":
        return DiscoveryResult(finished.id, finished.path, finished.load_circuit())
    with open_run(runs_dir, run_id, write=True) as run:
        return resume_open_run(run, progress=progress, on_event=on_event)


def resume_open_run(
    run: Run,
    *,
    progress: ProgressCallback | None = None,
    on_event: OnEvent | None = None,
    on_open: Callable[[Backend, Task], None] | None = None,
) -> DiscoveryResult:
    """Go on with an interrupted run that is open for writing.

    Args:
        on_open: told the model and the pairs once they are there.

    Raises:
        StoreError: where its model or its pairs are not those it began with.
    """
    model, task = reload_model_and_task(run)
    if read_settings(run).pairs not in (None, task.fingerprint):
        raise StoreError(
            f"task.jsonl of run {run.id} holds other pairs than the run began with.",
            "Restore it, or start a new run.",
        )
    if on_open is not None:
        on_open(model, task)
    run.update(status="running", problem=None)
    return _run_stages(
        _make_context(run, read_settings(run), model, task, progress, on_event),
        read_last_state(run),
    )


def reload_model_and_task(run: Run) -> tuple[Backend, Task]:
    """The model and the very pairs of a run.

    Raises:
        StoreError: where the weights are not those of the run any more.
    """
    record = run.record
    how = read_settings(run).load
    model = reload(how.model_dump())
    if record.model.fingerprint and model.info.fingerprint != record.model.fingerprint:
        raise StoreError(
            f"The model {how.model!r} has other weights than run {run.id} began with.",
            "Restore them, or start a new run.",
        )
    return model, read_saved_task(run, model)


def read_saved_task(run: Run, model: Backend) -> Task:
    """The task as it stands in the run's folder."""
    settings, lines = read_settings(run), run.load_pairs()
    try:
        written = [
            PromptPair(
                clean=tuple(p["clean"]),
                corrupted=tuple(p["corrupted"]),
                answer=tuple(p["answer"]),
                wrong=tuple(p["wrong"]),
                template=p["template"],
                labels=p["labels"],
            )
            for p in lines
        ]
        splits = tuple(SPLIT_BY_NAME[p["split"]] for p in lines)
    except (KeyError, TypeError) as fault:
        raise StoreError(
            f"task.jsonl of run {run.id} is damaged ({type(fault).__name__}).", "Start a new run."
        ) from None
    again = load_task(written, model, seed=settings.seed)
    return Task(
        name=settings.task_name,
        pairs=again.pairs,
        splits=splits,
        split_method=settings.split_method,
        metric=settings.task_metric,
        seed=settings.seed,
    )


def read_settings(run: Run) -> RunSettings:
    """A run's configuration.

    Raises:
        StoreError: where run.json holds none that this version understands.
    """
    try:
        return RunSettings.model_validate(run.record.configuration)
    except ValidationError as fault:
        place = ".".join(map(str, fault.errors(include_url=False)[0]["loc"]))
        raise StoreError(
            f"The configuration of run {run.id} is damaged at {place}.", "Start a new run."
        ) from None


def read_last_state(run: Run) -> State:
    """The state of the last finished stage."""
    for event in reversed(run.events()):
        if "state" in event:
            try:
                return State.model_validate(event["state"])
            except ValidationError:
                raise StoreError(
                    f"events.jsonl of run {run.id} holds a damaged state.", "Start a new run."
                ) from None
    return State()


def _run_stages(context: RunContext, state: State) -> DiscoveryResult:
    run = context.run
    context.meter.spent, context.earlier_seconds = state.spent, state.seconds

    def cost() -> Cost:
        return Cost(forward_equivalents=context.meter.spent, seconds=context.seconds)

    with record_outcome(run, cost, is_out_of_memory, "fewer pairs or less memory to use"):
        for name, stage in STAGES.items():
            if name in state.done or state.should_stop:
                continue
            try:
                state = stage(state, context)
            except BudgetError as spent:
                state = _mark_cut_short(state, name)
                state = context.finish_stage(
                    state, "budget", {"stage": name}, f"the budget ended in {name}", spent.cause
                )
        state = state.with_changes(
            peak_memory_bytes=max(state.peak_memory_bytes, read_peak_memory())
        )
        circuit = write_record(state, context)
        run.update(status="completed", cost=circuit.cost)
        return DiscoveryResult(run.id, run.path, circuit)


def _mark_cut_short(state: State, stage: str) -> State:
    """The state where the budget ended in a stage: before the verdict it decides it, afterwards it is only named."""
    enters = (
        "" if stage == "stability" else ", which enters no verdict"
    )  # (f) is among the conditions that were not run
    reasons = (
        state.reasons
        if state.verdict is None
        else (*state.reasons, f"the budget ended before {stage}{enters}")
    )
    return state.with_changes(cut_short=stage, reasons=reasons)


def _make_context(
    run: Run,
    settings: RunSettings,
    model: Backend,
    task: Task,
    progress: ProgressCallback | None,
    on_event: OnEvent | None,
) -> RunContext:
    meter = Meter(limit=settings.budget, progress=progress)
    return RunContext(model, task, settings, meter, run, on_event)


def _check_arguments(
    model: Backend, task: Task, metric: str | None, universe: str, budget: float | None
) -> None:
    if metric is not None and metric not in get_args(MetricName):
        raise MeasurementError(
            f"metric {metric!r} is not known.", f"Allowed: {', '.join(get_args(MetricName))}."
        )
    if universe not in get_args(Universe):
        raise MeasurementError(
            f"universe {universe!r} is not known.", f"Allowed: {', '.join(get_args(Universe))}."
        )
    if budget is not None and not budget > 0:
        raise MeasurementError(
            f"budget is {budget}.", "Give a positive number of forward-pass equivalents."
        )
    if not task.discovery.pairs or not task.heldout.pairs:
        raise MeasurementError(
            f"The task has {len(task)} pairs, which leaves a split empty.",
            "Give at least 2 pairs; a verdict needs 96.",
        )


def _task_lines(task: Task) -> list[dict[str, Any]]:
    def line(pair: EncodedPair, split: str | None) -> dict[str, Any]:
        plain = {
            name: list(getattr(pair, name)) for name in ("clean", "corrupted", "answer", "wrong")
        }
        return {**plain, "template": pair.template, "labels": dict(pair.labels), "split": split}

    return [line(pair, split) for pair, split in zip(task.pairs, task.splits, strict=True)]
