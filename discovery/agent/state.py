"""What a run has concluded so far, as an immutable value.

Each stage turns one state into the next, and the journal keeps it at the end of the stage. A run
that was killed continues from the last state in its journal, so a finished stage is never
measured again.
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
    RoleMeasurement,
    SplitEvaluation,
    Verdict,
)
from discovery.graph.base import Json
from discovery.sites import Node


class State(JsonModel):
    """Everything that a run has concluded so far. Nodes are named as in circuit.json.

    Attributes:
        done: the names of the finished stages, in order.
        gates: for each split, the gates of the behaviour that fail; empty if there is a behaviour.
        splits: what the behaviour check measured on each split.
        behaviour: the same numbers as the event of the check shows them.
        ranking: all nodes, the largest effect first.
        effects: for each node, its effect alone in each direction, with intervals.
        curve: faithfulness of the ranking's first k nodes, and of the circuit.
        circuit: the candidate; after the stage "mend", the circuit.
        labels: for each node that has one, its role, such as "induction head; redundant".
        role_measurements: for each of these nodes, what its role rests on.
        drop_shares: for each node of the circuit, a lower bound on its largest drop as a share of
            δ (d), in the search that chose it.
        partners: for each redundant node, the nodes that do its work when it is ablated.
        positions: for each node, the positions or labels at which it acts.
        sweeps: for each sweep by position, how many pairs and cells it measured.
        edges: the measured edges of the circuit, with their effects.
        edge_counts: how many edges there are, how many were measured, and on how many pairs.
        stability: the mean Jaccard that decides condition (f), weighted from version 2 of the rules
            on; None if it was not run or is not decided.
        plain_jaccard: the plain mean Jaccard, if `stability` is the weighted one.
        cut_searches: the number of repeated searches that their share of the budget cut off.
        inclusion: for each node, the share of the repeated searches that chose it.
        evaluation: every number behind the verdict.
        verdict: the verdict; None before the held-out pairs were looked at.
        reasons: the reasons for the verdict.
        cut_short: what the budget ended before, if that decides the verdict; None if nothing did.
        left_out: the stages that the budget did not reach, in order, and that decide no verdict.
        shortened: the stages that the budget ended early, and that kept what they had by then.
        evidence: for each node, the ids of the results that its numbers come from.
        estimates: what each stage was last estimated to cost, in the order of the stages.
        rate: the forward-pass equivalents that the machine did in a second; None before a plan.
        spent: forward-pass equivalents so far.
        seconds: wall-clock time so far.
        peak_memory_bytes: the most memory that the process has held.
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
    role_measurements: Mapping[str, tuple[RoleMeasurement, ...]] = Field(default_factory=dict)
    drop_shares: Mapping[str, float] = Field(default_factory=dict)
    partners: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    positions: Mapping[str, tuple[int | str, ...]] = Field(default_factory=dict)
    sweeps: Mapping[str, Mapping[str, Json]] = Field(default_factory=dict)
    edges: tuple[CircuitEdge, ...] = ()
    edge_counts: Mapping[str, Json] = Field(default_factory=dict)
    stability: float | None = None
    plain_jaccard: float | None = None
    cut_searches: int = 0
    inclusion: Mapping[str, float] = Field(default_factory=dict)
    evaluation: Evaluation = Evaluation()
    verdict: Verdict | None = None
    reasons: tuple[str, ...] = ()
    cut_short: str | None = None
    left_out: tuple[str, ...] = ()
    shortened: tuple[str, ...] = ()
    evidence: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    estimates: Mapping[str, float] = Field(default_factory=dict)
    rate: float | None = None
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
        """Whether the run ends here, because there is no behaviour or no budget left."""
        return any(self.gates.values()) or self.cut_short is not None

    def with_changes(self, **changes: object) -> State:
        """Return the state with these fields changed."""
        return self.model_copy(update=changes)
