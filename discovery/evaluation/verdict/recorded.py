"""Whether the verdict of a record follows from the numbers that the record itself holds.

Nothing is measured here: a record whose numbers were changed together with its verdict passes.
`runs verify` measures the numbers again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from discovery.evaluation.verdict import version_1, version_2
from discovery.evaluation.verdict.findings import Findings
from discovery.graph import (
    CONDITIONS,
    EVIDENCE_ABLATIONS,
    CircuitGraph,
    Conditions,
    SplitEvaluation,
)

_CUT_SHORT = "the budget ended before "


def find_contradictions(record: CircuitGraph) -> tuple[str, ...]:
    """Return what in a record does not follow from its own numbers.

    The conditions and the verdict are decided again from the recorded evidence, by the version of
    the rules that the record names. The verdict `no_behaviour` is taken as it is, because a record
    does not hold the intervals that decide it, and so is a record without a verdict.

    Args:
        record: the record.

    Returns:
        One sentence for each contradiction; empty if there is none.
    """
    if record.verdict in (None, "no_behaviour"):
        return ()
    judge = version_1.judge if record.rules == 1 else version_2.judge
    judgement = judge(_collect_findings(record))
    found = list(_compare_conditions(record.evaluation.conditions, judgement.conditions))
    if judgement.verdict != record.verdict:
        found.append(
            f"the verdict is recorded as {record.verdict}; from the record's own numbers it is "
            f"{judgement.verdict}"
        )
    return tuple(found)


def recorded_stability(record: CircuitGraph) -> float | None:
    """Return the mean Jaccard that decided (f) as recorded; None if it was not run."""
    stability: Any = record.evaluation.tests.get("stability", {})
    mean: float | None = stability.get("mean_weighted_jaccard", stability.get("mean_jaccard"))
    return mean


def _collect_findings(record: CircuitGraph) -> Findings:
    """Return what the verdict of a record rests on."""
    heldout = record.evaluation.heldout or SplitEvaluation(n=record.task.n_heldout or 0)
    discovery = record.evaluation.discovery
    undefined = [
        ablation
        for ablation in EVIDENCE_ABLATIONS
        if discovery is not None
        and (part := discovery.ablations.under(ablation)) is not None
        and part.faithfulness is None
    ]
    return Findings(
        n_heldout=heldout.n,
        size=record.size,
        evidence={a: heldout.ablations.under(a) for a in EVIDENCE_ABLATIONS},
        minimality=heldout.minimality,
        stability=recorded_stability(record),
        cut_short=_recorded_cut(record),
        undefined=undefined,
    )


def _recorded_cut(record: CircuitGraph) -> str | None:
    """Return what the budget of an inconclusive record did not reach.

    A record has it in its reasons alone. It can only lower a verdict to `inconclusive`.
    """
    if record.verdict != "inconclusive":
        return None
    cuts = [reason for reason in record.reasons if reason.startswith(_CUT_SHORT)]
    return cuts[0].removeprefix(_CUT_SHORT) if cuts else None


def _compare_conditions(recorded: Conditions, decided: Conditions) -> Iterator[str]:
    for condition in CONDITIONS:
        for ablation in EVIDENCE_ABLATIONS:
            old = recorded.under(condition, ablation)
            new = decided.under(condition, ablation)
            where = "" if recorded.has_one_status(condition) else f" under {ablation}"
            if old != new and (where or ablation == EVIDENCE_ABLATIONS[0]):
                yield (
                    f"({condition}){where} is recorded as {old}; from the record's own numbers it "
                    f"is {new}"
                )
