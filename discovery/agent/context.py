"""What every stage is given beside the state: the model, the splits, the budget, the journal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from discovery.agent.budget import BudgetPlan
from discovery.agent.saved.measured_sets import (
    HELDOUT_SETS,
    restore_set_metrics,
    restore_single_ablations,
    save_set_metrics,
)
from discovery.agent.saved.run_folder import RunSettings, save_reference
from discovery.agent.state import State
from discovery.backends.base import Backend
from discovery.backends.hardware.memory import read_peak_memory
from discovery.engine import Engine, Meter, ReferenceMeans, new_reference
from discovery.evaluation import SplitEvaluator, settle_reference
from discovery.graph import RulesVersion
from discovery.methods.ablation import NodeSet
from discovery.sites import MetricName, Universe
from discovery.store import OnEvent, Run
from discovery.tasks.task import SplitName, Task

SEARCH_PAIRS = 64  # discovery pairs that the search uses
SAVE_SECONDS = 60  # between two savings of what a long stage has measured
MAX_DESCRIPTION_PAIRS = 16
"""The discovery pairs on which sweeps by position and edges are measured."""

Measurements = Mapping[Any, Any]  # the `measured` of an event: JSON; keys may be closed choices


@dataclass(kw_only=True)
class RunContext:
    """What the stages of one run share.

    Attributes:
        model: the model to explain.
        task: the behaviour to explain.
        settings: what was asked for.
        meter: counts the work, and ends the run at its budget.
        run: the run's folder, open for writing.
        on_event: called with each event when it is written.
        started_at: when this process began to work on the run, on the monotonic clock.
        earlier_seconds: wall-clock time that earlier processes worked on the run.
        spent_before: forward-pass equivalents that earlier processes spent on the run.
        plan: how the budget is divided over the stages; None without a budget.
        timed_rate: the forward-pass equivalents a second of a timed batch; None before one was
            timed.
    """

    model: Backend
    task: Task
    settings: RunSettings
    meter: Meter
    run: Run
    on_event: OnEvent | None = None
    started_at: float = field(default_factory=time.monotonic)
    earlier_seconds: float = 0.0
    spent_before: float = 0.0
    plan: BudgetPlan | None = None
    timed_rate: float | None = None
    _evaluators: dict[SplitName, SplitEvaluator] = field(default_factory=dict)
    _search_evaluator: SplitEvaluator | None = None
    _description_engine: Engine | None = None
    _reference: ReferenceMeans | None = None
    _saved_at: float = field(default_factory=time.monotonic)

    @property
    def reference(self) -> ReferenceMeans:
        """The means of mean ablation, which are computed once and which both splits share."""
        if self._reference is None:
            self._reference = new_reference(
                self.model,
                self.task,
                meter=self.meter,
                memory=self.settings.memory,
                rules=self.settings.rules,
            )
        return self._reference

    def settle_reference(self, circuit: NodeSet) -> None:
        """Draw more reference prompts if f of a circuit depends on which of them are used.

        task.jsonl then holds those that are in use.
        """
        if self.rules == 1:
            return
        before = self.reference.per_group
        agreements = settle_reference(
            [self.evaluator("discovery"), self.evaluator("heldout")], circuit
        )
        if self.reference.per_group != before:
            save_reference(self.run, self.task, self.reference.prompts)
            halves = [list(agreement.halves) for agreement in agreements]
            self.write_decision(
                "validate",
                {"prompts_per_group": self.reference.per_group, "f_by_halves": halves},
                f"{self.reference.per_group} reference prompts of each template and length",
                "f under mean ablation differed between two halves of fewer prompts",
            )

    @property
    def metric(self) -> MetricName:
        """The metric of this run: the one that was asked for, or the task's own."""
        return self.settings.metric or self.task.metric

    @property
    def seed(self) -> int:
        """The seed of every random choice."""
        return self.settings.seed

    @property
    def rules(self) -> RulesVersion:
        """The version of the rules of evaluation that the run began under."""
        return self.settings.rules

    @property
    def universe(self) -> Universe:
        """What can be ablated."""
        return self.settings.universe

    @property
    def seconds(self) -> float:
        """Wall-clock time of this run, earlier processes included."""
        return self.earlier_seconds + time.monotonic() - self.started_at

    def allowance(self, stage: str) -> float | None:
        """Return the forward-pass equivalents that a stage may spend; None without a budget."""
        if self.plan is not None:
            return self.plan.allowance(stage, self.meter.spent)
        limit = self.settings.budget
        return None if limit is None else max(limit - self.meter.spent, 0.0)

    @contextmanager
    def stage_budget(self, stage: str) -> Iterator[None]:
        """Let the meter refuse what would exceed the allowance of a stage, inside a `with` block.

        Whoever works inside keeps what it has when BudgetError is raised; the later stages still
        have their shares.
        """
        limit = self.meter.limit
        allowance = self.allowance(stage)
        if allowance is not None:
            self.meter.limit = self.meter.spent + allowance
        try:
            yield
        finally:
            self.meter.limit = limit

    def evaluator(self, split: SplitName) -> SplitEvaluator:
        """Return the evaluator of a split, which is made when it is first asked for."""
        if split not in self._evaluators:
            task = self.task.discovery if split == "discovery" else self.task.heldout
            evaluator = SplitEvaluator.of(
                self.model,
                task,
                self.universe,
                self.seed,
                metric=self.metric,
                memory=self.settings.memory,
                meter=self.meter,
                rules=self.settings.rules,
                reference=self.reference,
            )
            if split == "heldout":
                restore_set_metrics(self.run, evaluator, HELDOUT_SETS)
            self._evaluators[split] = evaluator
        return self._evaluators[split]

    @property
    def search_evaluator(self) -> SplitEvaluator:
        """The evaluator of the pairs that the search uses: the first discovery pairs."""
        if self._search_evaluator is None:
            self._search_evaluator = self.evaluator("discovery").first(SEARCH_PAIRS)
            restore_single_ablations(self.run, self._search_evaluator, self.rules)
            restore_set_metrics(self.run, self._search_evaluator)
        return self._search_evaluator

    @property
    def description_engine(self) -> Engine:
        """The discovery pairs for what describes the circuit and enters no verdict.

        These are the first MAX_DESCRIPTION_PAIRS of them in their shuffled order; all of them if
        the run is exhaustive.
        """
        if self._description_engine is None:
            evaluator = self.evaluator("discovery")
            if not self.settings.exhaustive:
                evaluator = evaluator.first(MAX_DESCRIPTION_PAIRS)
            self._description_engine = evaluator.engine
        return self._description_engine

    def write_decision(self, stage: str, measured: Measurements, concluded: str, why: str) -> None:
        """Write a decision within a stage. A run does not resume from it."""
        self._write(_event(stage, "decision", measured, concluded, why))

    def write_preview(
        self, state: State, stage: str, measured: Measurements, concluded: str, why: str
    ) -> None:
        """Write what a stage that is not finished has found until now.

        It is shown as a finished stage is. A run that resumes does the stage again.
        """
        event = _event(stage, "preview", measured, concluded, why)
        self._write(event | self._describe_progress(state))

    def write_search_decision(
        self, state: State, measured: Measurements, concluded: str, why: str
    ) -> None:
        """Write a decision of the search, and now and then what the search has measured so far.

        A search that is interrupted then begins again, but what was measured is not measured again,
        and what it cost stays counted.
        """
        event = _event("mend", "decision", measured, concluded, why)
        if self._is_save_due:
            self.save_set_metrics()
            event |= self._describe_progress(state)
        self._write(event)

    def write_plan(self, state: State, measured: Measurements, concluded: str, why: str) -> None:
        """Write what the rest of the run will cost. A run resumes with these estimates."""
        self._write(
            _event("plan", "plan", measured, concluded, why) | self._describe_progress(state)
        )

    def _describe_progress(self, state: State) -> dict[str, Any]:
        """Return what an event holds from which a run resumes: the cost so far, and the state."""
        return {
            "forward_equivalents": self.meter.spent,
            "state": self._add_cost(state).model_dump(mode="json", by_alias=True),
        }

    def _add_cost(self, state: State) -> State:
        return state.with_changes(spent=self.meter.spent, seconds=self.seconds)

    def finish_stage(
        self, state: State, stage: str, measured: Measurements, concluded: str, why: str
    ) -> State:
        """Write the end of a stage, and return the state to resume from."""
        finished = self._add_cost(state).with_changes(
            done=(*state.done, stage),
            peak_memory_bytes=max(state.peak_memory_bytes, read_peak_memory()),
        )
        event = _event(stage, "stage", measured, concluded, why)
        self._write(event | self._describe_progress(finished))
        return finished

    @property
    def _is_save_due(self) -> bool:
        return time.monotonic() - self._saved_at >= SAVE_SECONDS

    def save_set_metrics(self) -> None:
        """Keep the metric of every set that the search has measured."""
        save_set_metrics(self.run, self.search_evaluator)
        self._saved_at = time.monotonic()

    def save_heldout_sets(self, state: State, condition: str) -> None:
        """Keep what the circuit was judged by until now, unless that was done a moment ago."""
        if not self._is_save_due:
            return
        save_set_metrics(self.run, self.evaluator("heldout"), HELDOUT_SETS)
        self.save_set_metrics()  # the contexts of (d) were chosen on the pairs of the search
        self.write_preview(
            state,
            "validate",
            {},
            f"{condition} measured",
            "the circuit is judged when all conditions are measured",
        )

    def save_arrays(
        self,
        result_id: str,
        arrays: Mapping[str, Tensor],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Keep the full arrays of a result, as float32."""
        plain: dict[str, np.ndarray] = {
            name: value.detach().to("cpu", torch.float32).numpy() for name, value in arrays.items()
        }
        self.run.save_arrays(result_id, plain, metadata=metadata)

    def _write(self, event: dict[str, Any]) -> None:
        self.run.append_event(event)
        if self.on_event is not None:
            self.on_event({name: value for name, value in event.items() if name != "state"})


def _event(
    stage: str, kind: str, measured: Measurements, concluded: str, why: str
) -> dict[str, Any]:
    return {
        "stage": stage,
        "kind": kind,
        "measured": measured,
        "concluded": concluded,
        "why": why,
    }
