"""`discover` and `resume`: run the stages one after the other, and keep the run in its folder.

Each stage turns the state into the next one, and the journal (events.jsonl) receives the new
state. A run that is killed therefore resumes after its last finished stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from discovery.agent.context import RunContext
from discovery.agent.outputs import write_record
from discovery.agent.saved_run import (
    RunSettings,
    describe_pairs,
    read_last_state,
    read_settings,
    reload_model_and_task,
)
from discovery.agent.stages import STAGES
from discovery.agent.state import State
from discovery.backends.base import Backend
from discovery.backends.hardware.memory import is_out_of_memory, read_peak_memory
from discovery.backends.loading.load_arguments import (
    LoadArguments,
    load_arguments,
    model_source,
)
from discovery.engine import Meter
from discovery.errors import BudgetError, MeasurementError, StoreError
from discovery.graph import RULES_VERSION, CircuitGraph, Cost
from discovery.progress import ProgressCallback
from discovery.sites import MetricName, Universe
from discovery.store import (
    OnEvent,
    Run,
    collect_provenance,
    create_run,
    open_run,
    record_outcome,
    utc_timestamp,
)
from discovery.tasks.task import Task


@dataclass(frozen=True)
class DiscoveryResult:
    """A finished run.

    Attributes:
        run_id: The id of the run, which is the name of its folder.
        path: The folder of the run.
        circuit: The circuit with its evidence and verdict, as circuit.json holds it.
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
    load: LoadArguments | Mapping[str, Any] | None = None,
) -> DiscoveryResult:
    """Find the circuit behind a behaviour and validate it.

    Args:
        model: The model to explain.
        task: The behaviour to explain, with its discovery and held-out pairs.
        metric: The number that is measured on each prompt; None means the task's own metric.
        seed: The seed of every random choice.
        universe: What can be ablated: "all" heads and MLPs, or "heads", which keeps the MLPs.
        budget: The most forward-pass equivalents that the run may take, summed over prompts. If
            it ends early, the record says so.
        memory: The most bytes that the run may take beside the model; None means what is free.
        exhaustive: Measure every cell of a sweep, however large its share of the budget is.
        runs_dir: The runs directory; None means the default one.
        progress: Called with the work done, the whole work (if known) and a label.
        on_event: Called with each event of the journal when it is written.
        on_begin: Called with the run's id before anything is measured, as soon as the run's
            folder exists and the run can be resumed.
        command: The command line, for the record.
        load: How the model and the task were loaded, so that `resume` can load them again; None
            means as the model describes itself. A mapping with the same fields will do.

    Returns:
        The finished run, whatever its verdict.

    Raises:
        MeasurementError: If a metric, universe or budget is not allowed, or if a split has no
            pairs.
        Interrupted: If the run is stopped from outside. Its `run_id` is the run to resume.
    """
    _check_arguments(task, metric, universe, budget)
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
        rules=RULES_VERSION,
        reference_from=task.reference_source.builtin,
        load=LoadArguments.model_validate(load or load_arguments(model)),
    )
    info = model.info
    provenance = collect_provenance(seed, info.remote or info.device, command, utc_timestamp())
    with create_run(
        runs_dir,
        task.name,
        model_source(info),
        settings.model_dump(mode="json"),
        provenance=provenance,
        pairs=describe_pairs(task),
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
    """Continue a run that was interrupted. A finished run is returned as it is.

    Args:
        run_id: The id of the run.
        runs_dir: The runs directory; None means the default one.
        progress: As in `discover`.
        on_event: As in `discover`.

    Raises:
        StoreError: If there is no such run, if another process writes to it, or if its model or
            its pairs are not those that it began with.
    """
    saved = open_run(runs_dir, run_id)  # for reading, which also works in a read-only directory
    if saved.record.kind != "discovery":
        raise StoreError(
            f"The run {run_id} trains an SAE.",
            f"Resume it: circuit-scout sae train --resume {run_id}",
        )
    if saved.record.status == "completed":
        return DiscoveryResult(saved.id, saved.path, saved.load_circuit())
    with open_run(runs_dir, run_id, write=True) as run:
        return resume_open_run(run, progress=progress, on_event=on_event)


def resume_open_run(
    run: Run,
    *,
    progress: ProgressCallback | None = None,
    on_event: OnEvent | None = None,
    on_open: Callable[[Backend, Task], None] | None = None,
) -> DiscoveryResult:
    """Continue an interrupted run whose folder is open for writing.

    Args:
        run: The run.
        progress: As in `discover`.
        on_event: As in `discover`.
        on_open: Called with the model and the task as soon as they are loaded.

    Raises:
        StoreError: If its model or its pairs are not those that it began with.
    """
    model, task = reload_model_and_task(run)
    settings = read_settings(run)
    if settings.pairs not in (None, task.fingerprint):
        raise StoreError(
            f"task.jsonl of run {run.id} holds other pairs than the run began with.",
            "Restore it, or start a new run.",
        )
    if on_open is not None:
        on_open(model, task)
    run.update(status="running", problem=None)
    context = _make_context(run, settings, model, task, progress, on_event)
    return _run_stages(context, read_last_state(run))


def _run_stages(context: RunContext, state: State) -> DiscoveryResult:
    run = context.run
    context.meter.spent = state.spent
    context.earlier_seconds = state.seconds

    def cost() -> Cost:
        return Cost(forward_equivalents=context.meter.spent, seconds=context.seconds)

    with record_outcome(run, cost, is_out_of_memory, "fewer pairs or less memory to use"):
        for name, stage in STAGES.items():
            if name in state.done or state.should_stop:
                continue
            try:
                state = stage(state, context)
            except BudgetError as fault:
                state = context.finish_stage(
                    _mark_cut_short(state, name),
                    "budget",
                    {"stage": name},
                    f"the budget ended in {name}",
                    fault.cause,
                )
        state = state.with_changes(
            peak_memory_bytes=max(state.peak_memory_bytes, read_peak_memory())
        )
        circuit = write_record(state, context)
        run.update(status="completed", cost=circuit.cost)
        return DiscoveryResult(run.id, run.path, circuit)


def _mark_cut_short(state: State, stage: str) -> State:
    """Return the state of a run whose budget ended in a stage.

    If there is no verdict yet, `cut_short` decides it. If there is one, it stays, and the reasons
    name the stage that was not finished.
    """
    if state.verdict is None:
        return state.with_changes(cut_short=stage)
    reason = f"the budget ended before {stage}"
    if stage != "stability":  # the verdict already names (f) as a condition that was not run
        reason += ", which enters no verdict"
    return state.with_changes(cut_short=stage, reasons=(*state.reasons, reason))


def _make_context(
    run: Run,
    settings: RunSettings,
    model: Backend,
    task: Task,
    progress: ProgressCallback | None,
    on_event: OnEvent | None,
) -> RunContext:
    return RunContext(
        model=model,
        task=task,
        settings=settings,
        meter=Meter(limit=settings.budget, progress=progress),
        run=run,
        on_event=on_event,
    )


def _check_arguments(task: Task, metric: str | None, universe: str, budget: float | None) -> None:
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
