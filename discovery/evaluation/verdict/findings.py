"""What a verdict is decided from, and what it consists of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from discovery.graph import (
    AblationEvidence,
    Conditions,
    EvidenceAblation,
    MinimalityCheck,
    Verdict,
)

EvidenceOrNone = Mapping[EvidenceAblation, AblationEvidence | None]
"""The evidence under each ablation; None or missing if nothing was measured."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that a verdict rests on.

    Attributes:
        n_heldout: the number of held-out pairs.
        size: the number of heads and MLPs in the circuit.
        evidence: what was measured under each ablation.
        minimality: how (d) was checked over both ablations; None in version 1 of the rules.
        stability: the mean Jaccard of condition (f); None if it was not run.
        cut_short: what the budget did not reach; None if it sufficed.
        failed_gates: the gates of the behaviour that do not hold, on either split.
        undefined: the ablations under which f is null on discovery pairs, so that nothing could be
            searched for.
    """

    n_heldout: int
    size: int
    evidence: EvidenceOrNone
    minimality: MinimalityCheck | None = None
    stability: float | None = None
    cut_short: str | None = None
    failed_gates: Sequence[str] = ()
    undefined: Sequence[str] = ()

    @property
    def was_measured(self) -> bool:
        """Whether anything was measured of the circuit."""
        return any(part is not None for part in self.evidence.values())


@dataclass(frozen=True)
class Judgement:
    """The outcome of every condition, the verdict, and the reasons for it."""

    conditions: Conditions
    verdict: Verdict
    reasons: tuple[str, ...]
