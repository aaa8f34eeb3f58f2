"""What the agent knows: an immutable value that each stage turns into the next, written with every event.

A killed run continues from the state of its last event; a finished stage is never measured again.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from discovery.graph import (
    CircuitEdge,
    CurvePoint,
    Evaluation,
    JsonModel,
    NodeEffect,
    SplitEvaluation,
    Verdict,
)
from discovery.graph.base import Json
from discovery.sites import Node


class State(JsonModel):
    """Everything concluded so far.

    Attributes:
        done: names of finished stages, in order.
        gates: behaviour gates that do not hold, by split; empty lists where there is a behaviour.
        splits: what the behaviour check measured on each split.
        ranking: all nodes, largest effect first.
        effects: node -> its effect in each direction, with intervals.
        curve: faithfulness of the ranking's first k nodes.
        circuit: the candidate, and once frozen the circuit.
        labels: node -> how it acts (e.g. "redundant", "opposing").
        partners: node -> those that do its work where it is out, found by ablating two together.
        positions: node -> where it matters.
        stability: mean Jaccard of condition (f), where known. inclusion: how often resamples chose each node.
        cut_searches: how many of its searches ended where their share of the budget was spent.
        evaluation, verdict, reasons: once judged.
        cut_short: what the budget ended before.
        evidence: node -> ids of the results its numbers come from.
        spent: forward-pass equivalents so far. seconds: likewise.
    """

    done: tuple[str, ...] = ()
    gates: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    splits: Mapping[str, SplitEvaluation] = Field(default_factory=dict)
    behaviour: Mapping[str, Json] = Field(default_factory=dict)
    ranking: tuple[str, ...] = ()
    effects: Mapping[str, NodeEffect] = Field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
    circuit: tuple[str, ...] = ()
    labels: Mapping[str, str] = Field(default_factory=dict)
    partners: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    positions: Mapping[str, tuple[int | str, ...]] = Field(default_factory=dict)
    edges: tuple[CircuitEdge, ...] = ()
    stability: float | None = None
    cut_searches: int = 0
    inclusion: Mapping[str, float] = Field(default_factory=dict)
    evaluation: Evaluation = Evaluation()
    verdict: Verdict | None = None
    reasons: tuple[str, ...] = ()
    cut_short: str | None = None
    evidence: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    spent: float = 0.0
    seconds: float = 0.0
    peak_memory_bytes: int = 0

    @property
    def circuit_nodes(self) -> frozenset[Node]:
        """The circuit as nodes."""
        return frozenset(Node.parse(name) for name in self.circuit)

    @property
    def ranked_nodes(self) -> list[Node]:
        """The ranking as nodes."""
        return [Node.parse(name) for name in self.ranking]

    @property
    def should_stop(self) -> bool:
        """Whether nothing more is to be measured: no behaviour, or no budget."""
        return any(self.gates.values()) or self.cut_short is not None

    def with_changes(self, **changes: object) -> State:
        """The state with these fields changed."""
        return self.model_copy(update=changes)
