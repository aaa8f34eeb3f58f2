"""What attention heads do: where they look, and which kinds of heads they are."""

from __future__ import annotations

from discovery.methods.heads.attention_patterns import (
    AttentionPatterns,
    AttentionShare,
    HeadAttention,
    attention_patterns,
)
from discovery.methods.heads.head_kinds import (
    AblationCheck,
    HeadKind,
    HeadKinds,
    HeadScore,
    head_kinds,
)

__all__ = [
    "AblationCheck",
    "AttentionPatterns",
    "AttentionShare",
    "HeadAttention",
    "HeadKind",
    "HeadKinds",
    "HeadScore",
    "attention_patterns",
    "head_kinds",
]
