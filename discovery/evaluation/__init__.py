"""Evaluation: f(S), the conditions (a) to (f), and the verdict that follows from them alone."""

from discovery.evaluation.alternatives import better, rivals
from discovery.evaluation.completeness import complete, completeness, gaps_in, gaps_out
from discovery.evaluation.conditions import Bench, Evidence, choose_contexts, judge_circuit
from discovery.evaluation.curve_areas import areas
from discovery.evaluation.evaluate import (
    Evaluated,
    circuit_key,
    conclude,
    conclude_without_circuit,
    evaluate_circuit,
    heldout_key,
    ranked,
    singles_of,
)
from discovery.evaluation.faithfulness import Faithfulness, Resampled
from discovery.evaluation.minimality import contexts, minimal, minimality, needed

__all__ = [
    "Bench",
    "Evaluated",
    "Evidence",
    "Faithfulness",
    "Resampled",
    "areas",
    "better",
    "choose_contexts",
    "circuit_key",
    "complete",
    "completeness",
    "conclude",
    "conclude_without_circuit",
    "contexts",
    "evaluate_circuit",
    "gaps_in",
    "gaps_out",
    "heldout_key",
    "judge_circuit",
    "minimal",
    "minimality",
    "needed",
    "ranked",
    "rivals",
    "singles_of",
]
