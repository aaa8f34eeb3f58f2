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
from discovery.graph.circuit import SCHEMA, SCHEMAS, CircuitGraph, ExportFormat
from discovery.graph.evaluation import (
    CONDITION_MEANINGS,
    CONDITIONS,
    EVIDENCE_ABLATIONS,
    RULES_VERSION,
    SINGLE_STATUS_CONDITIONS,
    VERDICTS,
    AblationEvidence,
    BlockAdditions,
    BySide,
    Completeness,
    Condition,
    ConditionMeaning,
    Conditions,
    Control,
    CurvePoint,
    Evaluation,
    EvidenceAblation,
    EvidenceByAblation,
    JointAddition,
    Minimality,
    MinimalityCheck,
    Outcome,
    OutcomeByAblation,
    PaddingTrial,
    RandomControls,
    Reference,
    RulesVersion,
    Score,
    Side,
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
    RoleMeasurement,
    SAEFacts,
    TaskFacts,
)

__all__ = [
    "CONDITIONS",
    "CONDITION_MEANINGS",
    "EVIDENCE_ABLATIONS",
    "RULES_VERSION",
    "SCHEMA",
    "SCHEMAS",
    "SINGLE_STATUS_CONDITIONS",
    "VERDICTS",
    "AblationEvidence",
    "BlockAdditions",
    "BySide",
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
    "JointAddition",
    "JsonModel",
    "Minimality",
    "MinimalityCheck",
    "ModelFacts",
    "NodeEffect",
    "Outcome",
    "OutcomeByAblation",
    "PaddingTrial",
    "Provenance",
    "RandomControls",
    "Reference",
    "RoleMeasurement",
    "RulesVersion",
    "SAEFacts",
    "Score",
    "Side",
    "SplitEvaluation",
    "TaskFacts",
    "Verdict",
]
