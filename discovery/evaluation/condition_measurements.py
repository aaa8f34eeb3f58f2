"""Measuring conditions (a) to (e) of a frozen circuit, within a budget.

The order is that of how much a condition decides: (a) and (b) first, then (c), (d) and (e). If the
budget ends, what was measured until then is kept. Tests that are reported beside the conditions
follow at no further cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from discovery.errors import BudgetError
from discovery.evaluation.alternatives import measure_random_controls
from discovery.evaluation.completeness import measure_completeness
from discovery.evaluation.faithfulness import SplitEvaluator
from discovery.evaluation.minimality import find_contexts, measure_minimality
from discovery.evaluation.supplementary import run_hypothesis_tests
from discovery.graph import EVIDENCE_ABLATIONS, AblationEvidence, EvidenceAblation
from discovery.graph.base import Json
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

PartialEvidence = dict[EvidenceAblation, AblationEvidence]
"""The evidence under each ablation that has been measured so far."""


@dataclass(frozen=True)
class ConditionMeasurements:
    """What was measured of a circuit's conditions.

    Attributes:
        evidence: the evidence under each ablation.
        cut_short: the condition that the budget did not reach, such as "(c)"; None if all were
            measured.
        tests: tests that are reported beside the conditions and decide nothing.
    """

    evidence: PartialEvidence
    cut_short: str | None
    tests: Mapping[str, Json] = field(default_factory=dict)


def measure_conditions(
    evaluator: SplitEvaluator,
    circuit: NodeSet,
    contexts_for: Callable[[EvidenceAblation], Mapping[Node, NodeSet]],
    ranking: Sequence[Node],
    seed: int,
) -> ConditionMeasurements:
    """Measure conditions (a) to (e) of a frozen circuit on one split.

    Args:
        evaluator: the split.
        circuit: the circuit.
        contexts_for: gives the contexts of minimality for an ablation; they are chosen on discovery
            pairs (see `choose_contexts`).
        ranking: all nodes, largest effect first.
        seed: of what is drawn at random.
    """
    evidence: PartialEvidence = {}
    condition = "(a) and (b)"
    try:
        for ablation in EVIDENCE_ABLATIONS:
            evidence[ablation] = evaluator.f(ablation).measure_circuit(circuit)
        condition = "(c)"
        for ablation in EVIDENCE_ABLATIONS:
            f = evaluator.f(ablation)
            completeness = measure_completeness(f, circuit, ranking, seed)
            _add(evidence, ablation, completeness=completeness)
        condition = "(d)"
        for ablation in EVIDENCE_ABLATIONS:
            f = evaluator.f(ablation)
            minimality = measure_minimality(f, circuit, contexts_for(ablation), seed)
            _add(evidence, ablation, minimality=minimality)
        condition = "(e)"
        for ablation in EVIDENCE_ABLATIONS:
            f = evaluator.f(ablation)
            random_controls = measure_random_controls(f, circuit, ranking, seed)
            _add(evidence, ablation, random_controls=random_controls)
    except BudgetError:
        return ConditionMeasurements(evidence, condition)
    tests = _run_tests(evaluator, circuit, evidence, ranking, seed)
    return ConditionMeasurements(evidence, None, tests)


def choose_contexts(
    evaluator: SplitEvaluator, circuit: NodeSet, ablation: EvidenceAblation
) -> dict[Node, NodeSet]:
    """Choose the context of each node for minimality, on the evaluator's pairs."""
    contexts = find_contexts(evaluator.f(ablation), circuit)
    return {node: context for node, (context, _) in contexts.items()}


def _add(evidence: PartialEvidence, ablation: EvidenceAblation, **measured: object) -> None:
    """Put measured fields into the evidence under one ablation."""
    evidence[ablation] = evidence[ablation].model_copy(update=measured)


def _run_tests(
    evaluator: SplitEvaluator,
    circuit: NodeSet,
    evidence: PartialEvidence,
    ranking: Sequence[Node],
    seed: int,
) -> dict[str, Json]:
    """Run the tests beside the conditions, which have measured every set that these need."""
    hypotheses: dict[str, Json] = {
        ablation: dict(run_hypothesis_tests(evaluator.f(ablation), circuit, ranking, seed))
        for ablation in EVIDENCE_ABLATIONS
    }
    share_in_band: dict[str, Json] = {
        ablation: measured.faithfulness.share_in_band
        for ablation, measured in evidence.items()
        if measured.faithfulness is not None
    }
    return {"hypotheses": hypotheses, "share_in_band": share_in_band}
