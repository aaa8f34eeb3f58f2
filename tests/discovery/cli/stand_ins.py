"""Stand-ins for the agent and a task, which record how a command uses them."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.discovery.graph.example import ioi_circuit

EVENTS = (
    {
        "stage": "heads",
        "kind": "stage",
        "measured": {},
        "concluded": "two heads",
        "why": "they move the metric",
    },
    {
        "stage": "mend",
        "kind": "decision",
        "measured": {},
        "concluded": "added L1H1",
        "why": "completeness",
    },
)


@dataclass(frozen=True)
class CommandResult:
    """How a command ended, and what it wrote."""

    status: int
    out: str
    err: str


class StubTask(tuple[str, int]):
    """A task as a command sees it: what it was loaded with, and how many pairs are held out."""

    heldout = range(48)

    def __new__(cls, *parts: object) -> StubTask:
        return super().__new__(cls, parts)


@dataclass
class StubAgent:
    """Records the calls of `discovery.agent`, and answers them.

    Attributes:
        folder: the folder of the run that it returns.
        calls: the name, the subject and the options of each call.
        fault: the exception that the next call raises, if any.
    """

    folder: Path
    calls: list[tuple[str, Any, Mapping[str, Any]]] = field(default_factory=list)
    fault: BaseException | None = None

    def answer(self, name: str, subject: Any, options: Mapping[str, Any]) -> Any:
        """Record a call, report two events and some progress, and return a run."""
        self.calls.append((name, subject, options))
        if on_event := options.get("on_event"):
            for event in EVENTS:
                on_event(event)
        if on_outlook := options.get("on_outlook"):
            on_outlook(
                types.SimpleNamespace(
                    done=250.0, total=1000.0, describe=lambda: "250 of about 1,000 done"
                )
            )
        if report := options.get("progress"):
            report(1.0, 10.0, "heads")
        if self.fault is not None:
            raise self.fault
        circuit = ioi_circuit(run_id=self.folder.name)
        return types.SimpleNamespace(run_id=self.folder.name, path=self.folder, circuit=circuit)

    def estimate_cost(self, model: Any, task: Any, **options: Any) -> Any:
        """Record a call, and return an estimate."""
        self.calls.append(("estimate_cost", (model, task), options))
        stages = {"heads": 1000.0, "validate": 234.5}
        ten_equivalents = types.SimpleNamespace(
            shares={"heads": 10.0, "validate": 0.0}, shortened=("heads",), left_out=("validate",)
        )
        return types.SimpleNamespace(
            forward_equivalents=1234.5,
            stages=stages,
            seconds=123.45,
            rate=10.0,
            plan=None if options["budget"] is None else ten_equivalents,
            note="a guess",
            to_dict=lambda: {"forward_equivalents": 1234.5, "stages": stages},
        )

    @property
    def options(self) -> Mapping[str, Any]:
        """The options of the last call."""
        return self.calls[-1][2]
