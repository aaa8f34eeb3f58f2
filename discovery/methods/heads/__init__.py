"""What attention heads do: where they look, and which kinds of heads they are."""

from __future__ import annotations

from discovery.methods.heads.attention_patterns import (
    AttentionPatterns,
    AttentionShare,
    HeadAttention,
    attention_patterns,
)
from discovery.methods.heads.composition import Composition
from discovery.methods.heads.head_kinds import HeadKinds, head_kinds
from discovery.methods.heads.head_weights import HeadWeights, head_weights
from discovery.methods.heads.interpret_head import (
    HeadInterpretation,
    HeadStatement,
    interpret_head,
)
from discovery.methods.heads.kinds import AblationCheck, HeadKind, HeadScore
from discovery.methods.heads.vocabulary_circuit import (
    ChanceScore,
    CircuitEntry,
    VocabularyCircuit,
)

__all__ = [
    "AblationCheck",
    "AttentionPatterns",
    "AttentionShare",
    "ChanceScore",
    "CircuitEntry",
    "Composition",
    "HeadAttention",
    "HeadInterpretation",
    "HeadKind",
    "HeadKinds",
    "HeadScore",
    "HeadStatement",
    "HeadWeights",
    "VocabularyCircuit",
    "attention_patterns",
    "head_kinds",
    "head_weights",
    "interpret_head",
]
