"""What every stage is given beside the state: the model, the task's splits ready to be measured on, and the journal.

The sets of nodes that a search has measured, kept with the run: a resumed search knows what the first one knew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from discovery.agent.saved_run import RunSettings
from discovery.agent.state import State
from discovery.backends.base import Backend
from discovery.backends.hardware.memory import read_peak_memory
from discovery.engine import Meter
from discovery.evaluation import SplitEvaluator
from discovery.graph import EVIDENCE_ABLATIONS
from discovery.methods.ablation import NodeSet
from discovery.sites import MetricName, Node, Universe
from discovery.store import Run
from discovery.tasks.task import Task

OnEvent = Callable[[Mapping[str, Any]], None]
Measurements = Mapping[Any, Any]  # JSON; keys may be any of the closed choices


@dataclass(kw_only=True)
class RunContext:
    """One run's surroundings.

    Attributes:
        settings: what was asked for.
        meter: the budget. run: the folder, opened for writing.
        on_event: told of each event as it is written.
    """

    model: Backend
    task: Task
    settings: RunSettings
    meter: Meter
    run: Run
    on_event: OnEvent | None = None
    started_at: float = field(default_factory=time.monotonic)
    earlier_seconds: float = 0.0
    _evaluators: dict[str, SplitEvaluator] = field(default_factory=dict)

    @property
    def metric(self) -> MetricName:
        """Of this run."""
        return self.settings.metric or self.task.metric

    @property
    def seed(self) -> int:
        """Of every random choice."""
        return self.settings.seed

    @property
    def universe(self) -> Universe:
        """What can be ablated."""
        return self.settings.universe

    def evaluator(self, split: str) -> SplitEvaluator:
        """A split, "discovery" or "heldout", ready to be measured on."""
        if split not in self._evaluators:
            task = self.task.discovery if split == "discovery" else self.task.heldout
            self._evaluators[split] = SplitEvaluator.of(
                self.model,
                task,
                self.universe,
                self.seed,
                metric=self.metric,
                memory=self.settings.memory,
                meter=self.meter,
            )
            if split == "discovery":
                restore_set_metrics(self.run, self._evaluators[split])
        return self._evaluators[split]

    def write_decision(
        self, state: State, stage: str, measured: Measurements, concluded: str, why: str
    ) -> State:
        """Write a decision that is not the end of its stage: it is not resumed from."""
        self._write(
            {
                "stage": stage,
                "kind": "decision",
                "measured": measured,
                "concluded": concluded,
                "why": why,
            }
        )
        return state

    def finish_stage(
        self, state: State, stage: str, measured: Measurements, concluded: str, why: str
    ) -> State:
        """Write the end of a stage, with the state to resume from."""
        ended = state.with_changes(
            done=(*state.done, stage),
            spent=self.meter.spent,
            seconds=self.seconds,
            peak_memory_bytes=max(state.peak_memory_bytes, read_peak_memory()),
        )
        event = {
            "stage": stage,
            "kind": "stage",
            "measured": measured,
            "concluded": concluded,
            "why": why,
        }
        self._write(
            {
                **event,
                "forward_equivalents": self.meter.spent,
                "state": ended.model_dump(mode="json", by_alias=True),
            }
        )
        return ended

    def save_set_metrics(self) -> None:
        """Keep m(S) of every set measured on discovery pairs: a resumed run does not measure them again."""
        save_set_metrics(self.run, self.evaluator("discovery"))

    def save_arrays(
        self,
        result_id: str,
        arrays: Mapping[str, Tensor],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Keep a result's full arrays."""
        plain: dict[str, np.ndarray] = {
            name: value.detach().to("cpu", torch.float32).numpy() for name, value in arrays.items()
        }
        self.run.save_arrays(result_id, plain, metadata=metadata)

    @property
    def seconds(self) -> float:
        """Wall-clock time of this run, earlier sessions included."""
        return self.earlier_seconds + time.monotonic() - self.started_at

    def _write(self, event: dict[str, Any]) -> None:
        self.run.append_event(event)
        if self.on_event is not None:
            self.on_event({name: value for name, value in event.items() if name != "state"})


def save_set_metrics(run: Run, bench: SplitEvaluator) -> None:
    """Write arrays/sets-<ablation>: the metric of each set on all pairs, and of those measured on the first pairs only."""
    for ablation, f in bench.measured_f_by_ablation.items():
        whole, parts = f.set_metric.measurements()
        width = max((len(values) for values in parts.values()), default=0)
        parts = {nodes: values for nodes, values in parts.items() if len(values) == width}
        arrays = {"whole": _stack_metrics(whole).numpy(), "parts": _stack_metrics(parts).numpy()}
        run.save_arrays(
            f"sets-{ablation}",
            arrays,
            metadata={"whole": _format_sets(whole), "parts": _format_sets(parts)},
        )


def restore_set_metrics(run: Run, bench: SplitEvaluator) -> None:
    """Take over what an earlier session of the run measured."""
    known = set(run.array_ids())
    for ablation in EVIDENCE_ABLATIONS:
        if f"sets-{ablation}" in known:
            arrays, names = (
                run.load_arrays(f"sets-{ablation}"),
                run.array_metadata(f"sets-{ablation}"),
            )
            whole, parts = (
                _parse_sets(names[kind], torch.from_numpy(arrays[kind]))
                for kind in ("whole", "parts")
            )
            bench.f(ablation).set_metric.restore(whole, parts)


def _stack_metrics(sets: dict[NodeSet, Tensor]) -> Tensor:
    return (
        torch.stack([values.float().cpu() for values in sets.values()])
        if sets
        else torch.zeros(0, 0)
    )


def _format_sets(sets: dict[NodeSet, Tensor]) -> str:
    return ";".join(",".join(map(str, sorted(nodes))) for nodes in sets)


def _parse_sets(names: str, values: Tensor) -> dict[NodeSet, Tensor]:
    if not len(values):
        return {}
    return {
        frozenset(Node.parse(n) for n in name.split(",") if n): row
        for name, row in zip(names.split(";"), values, strict=True)
    }
