"""The circuit record: frozen pydantic values that convert to a networkx DiGraph and back.

`CircuitGraph` is the whole record. Its parts are in `record`, the numbers behind the verdict in
`evaluation`. JSON and GraphML are read back without loss; DOT and Mermaid are for drawing. This
package needs no torch.

    >>> from discovery.graph import CircuitGraph, CircuitNode
    >>> circuit = CircuitGraph(nodes=(CircuitNode.of("L9H6", role="name mover"),))
    >>> circuit.to_networkx().nodes["a9.h6"]["role"]
    'name mover'
"""

from __future__ import annotations

from discovery.graph.base import Effect, JsonModel
from discovery.graph.circuit import SCHEMA, CircuitGraph, ExportFormat
from discovery.graph.evaluation import (
    CONDITION_MEANINGS,
    CONDITIONS,
    EVIDENCE_ABLATIONS,
    VERDICTS,
    AblationEvidence,
    Completeness,
    Condition,
    ConditionMeaning,
    Conditions,
    Control,
    CurvePoint,
    Evaluation,
    EvidenceAblation,
    EvidenceByAblation,
    Minimality,
    Outcome,
    OutcomeByAblation,
    RandomControls,
    Reference,
    Score,
    SplitEvaluation,
    Verdict,
)
from discovery.graph.record import (
    CircuitEdge,
    CircuitNode,
    Cost,
    FeatureFacts,
    ModelFacts,
    NodeEffect,
    Provenance,
    SAEFacts,
    TaskFacts,
)

__all__ = [
    "CONDITIONS",
    "CONDITION_MEANINGS",
    "EVIDENCE_ABLATIONS",
    "SCHEMA",
    "VERDICTS",
    "AblationEvidence",
    "CircuitEdge",
    "CircuitGraph",
    "CircuitNode",
    "Completeness",
    "Condition",
    "ConditionMeaning",
    "Conditions",
    "Control",
    "Cost",
    "CurvePoint",
    "Effect",
    "Evaluation",
    "EvidenceAblation",
    "EvidenceByAblation",
    "ExportFormat",
    "FeatureFacts",
    "JsonModel",
    "Minimality",
    "ModelFacts",
    "NodeEffect",
    "Outcome",
    "OutcomeByAblation",
    "Provenance",
    "RandomControls",
    "Reference",
    "SAEFacts",
    "Score",
    "SplitEvaluation",
    "TaskFacts",
    "Verdict",
]
