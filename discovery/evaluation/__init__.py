"""Evaluation: f(S), the conditions (a) to (f), and the verdict that follows from them alone."""

from discovery.evaluation.alternatives import beats_alternatives, find_rivals
from discovery.evaluation.completeness import (
    is_complete,
    measure_completeness,
    measure_gaps_in,
    measure_gaps_out,
)
from discovery.evaluation.conditions import (
    PartialEvidence,
    SplitEvaluator,
    choose_contexts,
    measure_conditions,
)
from discovery.evaluation.curve_areas import integrate_curves
from discovery.evaluation.evaluate import (
    CircuitEvaluation,
    circuit_key,
    combine_directions,
    conclude,
    conclude_without_circuit,
    evaluate_circuit,
    heldout_key,
    sort_by_effect,
)
from discovery.evaluation.faithfulness import Faithfulness, ResampledFaithfulness
from discovery.evaluation.minimality import (
    find_contexts,
    find_largest_drops,
    is_needed,
    measure_minimality,
)

__all__ = [
    "CircuitEvaluation",
    "Faithfulness",
    "PartialEvidence",
    "ResampledFaithfulness",
    "SplitEvaluator",
    "beats_alternatives",
    "choose_contexts",
    "circuit_key",
    "combine_directions",
    "conclude",
    "conclude_without_circuit",
    "evaluate_circuit",
    "find_contexts",
    "find_largest_drops",
    "find_rivals",
    "heldout_key",
    "integrate_curves",
    "is_complete",
    "is_needed",
    "measure_completeness",
    "measure_conditions",
    "measure_gaps_in",
    "measure_gaps_out",
    "measure_minimality",
    "sort_by_effect",
]
