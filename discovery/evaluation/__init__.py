"""Evaluation: f(S), the conditions (a) to (f), and the verdict that follows from them alone.

- `faithfulness` measures f of any sets of nodes.
- `completeness`, `minimality` and `alternatives` measure conditions (c), (d) and (e); `sequential`
  chooses nodes and pairs, and `contexts` what is taken out with a node for (d).
- `condition_measurements` runs (a) to (e) within a budget.
- `verdict` decides what the measurements mean, by the bounds in `thresholds`.
- `stability` compares circuits for condition (f).
- `version_1` keeps the rules of older records.
- `evaluate` puts all of it together for a given circuit; `ranking` orders nodes for a search.
"""

from discovery.evaluation.alternatives import beats_alternatives, find_rivals
from discovery.evaluation.completeness import measure_gaps_in, measure_gaps_out
from discovery.evaluation.condition_measurements import (
    ConditionMeasurements,
    PartialEvidence,
    measure_conditions,
)
from discovery.evaluation.contexts import choose_contexts
from discovery.evaluation.evaluate import (
    CircuitEvaluation,
    build_split_evaluation,
    circuit_key,
    conclude_without_circuit,
    evaluate_circuit,
    heldout_key,
    require_both_splits,
)
from discovery.evaluation.faithfulness import (
    Faithfulness,
    FaithfulnessByAblation,
    ResampledFaithfulness,
    SetFunction,
    SplitEvaluator,
    settle_reference,
)
from discovery.evaluation.minimality import minimal_drop
from discovery.evaluation.ranking import (
    EffectsByNode,
    combine_directions,
    measure_single_ablations,
    sort_by_effect,
)
from discovery.evaluation.stability import (
    combine_weights,
    plain_jaccard,
    weigh_nodes,
    weighted_jaccard,
)
from discovery.evaluation.supplementary import integrate_curves

__all__ = [
    "CircuitEvaluation",
    "ConditionMeasurements",
    "EffectsByNode",
    "Faithfulness",
    "FaithfulnessByAblation",
    "PartialEvidence",
    "ResampledFaithfulness",
    "SetFunction",
    "SplitEvaluator",
    "beats_alternatives",
    "build_split_evaluation",
    "choose_contexts",
    "circuit_key",
    "combine_directions",
    "combine_weights",
    "conclude_without_circuit",
    "evaluate_circuit",
    "find_rivals",
    "heldout_key",
    "integrate_curves",
    "measure_conditions",
    "measure_gaps_in",
    "measure_gaps_out",
    "measure_single_ablations",
    "minimal_drop",
    "plain_jaccard",
    "require_both_splits",
    "settle_reference",
    "sort_by_effect",
    "weigh_nodes",
    "weighted_jaccard",
]
