"""`discover` and `resume`: run the stages one after the other, and keep the run in its folder.

Each stage turns the state into the next one, and the journal (events.jsonl) receives the new
state. A run that is killed therefore resumes after its last finished stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from discovery.agent.budget import NEEDED_STAGES
from discovery.agent.context import RunContext
from discovery.agent.extension import find_missing_stages, reopen
from discovery.agent.outputs import save_interim_record, write_record
from discovery.agent.planning import (
    PLANNED_AFTER,
    OnOutlook,
    describe_outlook,
    is_out_of_reach,
    plan_stages,
    use_plan,
)
from discovery.agent.saved.damage import repair_arrays
from discovery.agent.saved.run_folder import (
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
from discovery.errors import BudgetError, MeasurementError, StoreError, require_choice
from discovery.evaluation import require_both_splits
from discovery.graph import RULES_VERSION, CircuitGraph, Cost
from discovery.methods.subject import TaskLike, resolve_task
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
        run_id: the id of the run, which is the name of its folder.
        path: the folder of the run.
        circuit: the circuit with its evidence and verdict, as circuit.json holds it.
    """

    run_id: str
    path: Path
    circuit: CircuitGraph


def discover(
    model: Backend,
    task: TaskLike,
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
    on_outlook: OnOutlook | None = None,
    command: str | None = None,
    load: LoadArguments | Mapping[str, Any] | None = None,
) -> DiscoveryResult:
    """Find the circuit behind a behaviour and validate it.

    Args:
        model: the model to explain.
        task: the behaviour to explain, with its discovery and held-out pairs; or what `load_task`
            accepts: a name, the path of a task file, or pairs.
        metric: the number that is measured on each prompt; None means the task's own metric.
        seed: the seed of every random choice.
        universe: what can be ablated: "all" heads and MLPs, or "heads", which keeps the MLPs.
        budget: the most forward-pass equivalents that the run may take, summed over prompts. It is
            divided over the stages before it is spent (see `agent.budget`). The record names what
            it did not reach, and `resume` can raise it.
        memory: the most bytes that the run may take beside the model; None means what is free.
        exhaustive: measure every cell of a sweep, however large its share of the budget is.
        runs_dir: the runs directory; None means the default one.
        progress: called with the work done, the whole work (if known) and a label.
        on_event: called with each event of the journal when it is written.
        on_begin: called with the run's id before anything is measured, as soon as the run's
            folder exists and the run can be resumed.
        on_outlook: called after each stage with what the run has spent and what is left of it.
        command: the command line, for the record.
        load: how the model and the task were loaded, so that `resume` can load them again; None
            means as the model describes itself. A mapping with the same fields will do.

    Returns:
        The finished run, whatever its verdict.

    Raises:
        MeasurementError: if a metric, universe or budget is not allowed, or if a split has no
            pairs.
        Interrupted: if the run is stopped from outside. Its `run_id` is the run to resume.
    """
    task = resolve_task(task, model, seed=seed, pairs=None)
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
        context = _make_context(run, settings, model, task, progress, on_event)
        return _run_stages(context, State(), on_outlook)


def resume(
    run_id: str,
    *,
    budget: float | None = None,
    runs_dir: Path | str | None = None,
    progress: ProgressCallback | None = None,
    on_event: OnEvent | None = None,
    on_outlook: OnOutlook | None = None,
) -> DiscoveryResult:
    """Continue a run that was interrupted, or one whose budget ended, with a larger budget.

    A finished run is returned as it is if its budget reached everything or is not raised.

    Args:
        run_id: the id of the run.
        budget: the budget of the whole run from now on, what it has spent already included; None
            means that it keeps its own.
        runs_dir: the runs directory; None means the default one.
        progress: as in `discover`.
        on_event: as in `discover`.
        on_outlook: as in `discover`.

    Raises:
        StoreError: if there is no such run, if another process writes to it, or if its model or
            its pairs are not those that it began with.
        MeasurementError: if the budget is no larger than the run's own.
    """
    saved = open_run(runs_dir, run_id)  # for reading, which also works in a read-only directory
    if saved.record.kind != "discovery":
        raise StoreError(
            f"The run {run_id} trains an SAE.",
            f"Resume it: circuit-scout sae train --resume {run_id}",
        )
    if is_finished(saved, budget):
        return DiscoveryResult(saved.id, saved.path, saved.load_circuit())
    with open_run(runs_dir, run_id, write=True) as run:
        return resume_open_run(
            run, budget=budget, progress=progress, on_event=on_event, on_outlook=on_outlook
        )


def is_finished(run: Run, budget: float | None = None) -> bool:
    """Whether there is nothing to continue in a run, also with this budget.

    Raises:
        MeasurementError: if a budget is given that is no larger than the run's own.
    """
    settings = read_settings(run)
    if budget is not None:
        _check_larger_budget(settings.budget, budget)
    if run.record.status != "completed":
        return False
    return budget is None or not find_missing_stages(read_last_state(run))


def resume_open_run(
    run: Run,
    *,
    budget: float | None = None,
    progress: ProgressCallback | None = None,
    on_event: OnEvent | None = None,
    on_outlook: OnOutlook | None = None,
) -> DiscoveryResult:
    """Continue a run whose folder is open for writing.

    Args:
        run: the run.
        budget: as in `resume`.
        progress: as in `discover`.
        on_event: as in `discover`.
        on_outlook: as in `discover`.

    Damaged arrays are measured again (see `agent.saved.damage`), which is found before the model is
    loaded.

    Raises:
        StoreError: if its model or its pairs are not those that it began with.
        MeasurementError: if the budget is no larger than the run's own.
    """
    settings = read_settings(run)
    if budget is not None:
        _check_larger_budget(settings.budget, budget)
    repair_arrays(run, on_event)
    state = read_last_state(run)
    if budget is not None:
        settings = settings.model_copy(update={"budget": budget})
        state = reopen(state)
    model, task = reload_model_and_task(run)
    if settings.pairs not in (None, task.fingerprint):
        raise StoreError(
            f"task.jsonl of run {run.id} holds other pairs than the run began with.",
            "Restore it, or start a new run.",
        )
    run.update(status="running", problem=None, configuration=settings.model_dump(mode="json"))
    context = _make_context(run, settings, model, task, progress, on_event)
    return _run_stages(context, _forget_older_ranking(run, state), on_outlook)


def _forget_older_ranking(run: Run, state: State) -> State:
    """Return the state without the stage "heads" if an earlier version measured it.

    Its arrays lack the metric of each pair under mean ablation, from which the search starts, so
    the ranking is measured again.
    """
    if "heads" not in state.done or "candidate" in state.done:
        return state
    if "per_pair" in run.load_arrays("nodes-mean"):
        return state
    return state.with_changes(done=tuple(name for name in state.done if name != "heads"))


def _check_larger_budget(old: float | None, new: float) -> None:
    if old is None:
        raise MeasurementError(
            f"The run has no budget, and {new:,.0f} is given.",
            "Resume it without --budget: it runs to its end.",
        )
    if not new > old:
        raise MeasurementError(
            f"The budget {new:,.0f} is no larger than the run's own, {old:,.0f}.",
            "Give a larger one: it counts what the run has spent already.",
        )


def _run_stages(context: RunContext, state: State, on_outlook: OnOutlook | None) -> DiscoveryResult:
    run = context.run
    context.meter.spent = state.spent
    context.spent_before = state.spent
    context.earlier_seconds = state.seconds

    def cost() -> Cost:
        return Cost(forward_equivalents=context.meter.spent, seconds=context.seconds)

    with record_outcome(run, cost, is_out_of_memory, "fewer pairs or less memory to use"):
        use_plan(state, context)
        for name in STAGES:
            if name in state.done or state.should_stop:
                continue
            if state.done and not state.estimates:  # begun by a version that made no plan
                state = plan_stages(state, context)
            state = _run_stage(name, state, context)
            if name in PLANNED_AFTER and not state.should_stop:
                state = plan_stages(state, context)
            if state.circuit:
                save_interim_record(state, context)
            if on_outlook is not None:
                on_outlook(describe_outlook(state, context))
        state = state.with_changes(
            peak_memory_bytes=max(state.peak_memory_bytes, read_peak_memory())
        )
        circuit = write_record(state, context)
        run.update(status="completed", cost=circuit.cost)
        return DiscoveryResult(run.id, run.path, circuit)


def _run_stage(name: str, state: State, context: RunContext) -> State:
    """Run one stage within its share of the budget, and return the state after it."""
    use_plan(state, context)
    if is_out_of_reach(context.plan, name):
        assert context.plan is not None
        needed = context.plan.estimates[name]
        remaining_budget = context.allowance(name)
        return _leave_out(
            state,
            context,
            name,
            f"{name} needs about {needed:,.0f} forward-pass equivalents, and "
            f"{remaining_budget:,.0f} are left",
        )
    refusals = context.meter.refusals
    try:
        with context.stage_budget(name):
            state = STAGES[name](state, context)
    except BudgetError as fault:
        return _leave_out(state, context, name, fault.cause)
    if name == "mend" and context.meter.refusals > refusals:
        state = state.with_changes(shortened=(*state.shortened, name))
    return state


def _leave_out(state: State, context: RunContext, stage: str, why: str) -> State:
    """Note that the budget does not reach a stage, and return the state to go on with.

    Without a stage of NEEDED_STAGES nothing can be judged, so the run ends. Otherwise it goes on
    with the next stage, which may cost less: without "mend" the candidate is the circuit.
    """
    changes: dict[str, object] = {"left_out": (*state.left_out, stage)}
    if stage in NEEDED_STAGES:
        changes = {"cut_short": stage}
    return context.finish_stage(
        state.with_changes(**changes),
        stage,
        {"stage": stage},
        f"the budget ended in {stage}",
        why,
    )


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
    if metric is not None:
        require_choice("metric", metric, get_args(MetricName))
    require_choice("universe", universe, get_args(Universe))
    if budget is not None and not budget > 0:
        raise MeasurementError(
            f"budget is {budget}.", "Give a positive number of forward-pass equivalents."
        )
    require_both_splits(task)
