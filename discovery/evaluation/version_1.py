"""Conditions (a) to (e) as version 1 of the rules measured them: every node on all pairs.

Records with `schema: "circuit-scout/circuit/1"` were judged by these rules. They are kept so that
such records can be verified, and so that a run that began under them ends under them. (c) asks that
no gap exceeds its limit, as a point value. In (d) every node must change f by at least 0.02 under
each ablation, in a context of none, one or two other nodes. Holm's correction is over the nodes,
for each ablation by itself. The verdict is in `verdict.version_1`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from discovery.errors import BudgetError
from discovery.evaluation import thresholds
from discovery.evaluation.alternatives import measure_random_controls
from discovery.evaluation.completeness import (
    choose_outside_nodes,
    measure_gaps_in,
    measure_gaps_out,
)
from discovery.evaluation.faithfulness import Faithfulness, SetFunction, SplitEvaluator
from discovery.graph import (
    EVIDENCE_ABLATIONS,
    AblationEvidence,
    Completeness,
    EvidenceAblation,
    Minimality,
)
from discovery.methods.ablation import NodeSet
from discovery.methods.statistics import holm, sign_flip_test
from discovery.sites import Node

MINIMALITY_FLIPS = 10_000  # random signs of each test of (d)
MIN_IMPROVEMENT = 1e-9  # a later context must be better by more than rounding


def measure_conditions(
    heldout: SplitEvaluator,
    search: SplitEvaluator,
    circuit: NodeSet,
    ranking: Sequence[Node],
    seed: int,
) -> tuple[dict[EvidenceAblation, AblationEvidence], str | None]:
    """Measure conditions (a) to (e) of a frozen circuit.

    Args:
        heldout: the split that decides.
        search: the split on which the contexts of (d) are chosen.
        circuit: the circuit.
        ranking: all nodes, largest effect first.
        seed: of what is drawn at random.

    Returns:
        The evidence under each ablation, and the condition that the budget did not reach.
    """
    evidence: dict[EvidenceAblation, AblationEvidence] = {}

    def add(ablation: EvidenceAblation, field: str, value: object) -> None:
        evidence[ablation] = evidence[ablation].model_copy(update={field: value})

    condition = "(a) and (b)"
    try:
        for ablation in EVIDENCE_ABLATIONS:
            evidence[ablation] = heldout.f(ablation).measure_circuit(circuit)
        condition = "(c)"
        for ablation in EVIDENCE_ABLATIONS:
            f = heldout.f(ablation)
            add(ablation, "completeness", measure_completeness(f, circuit, ranking, seed))
        condition = "(d)"
        for ablation in EVIDENCE_ABLATIONS:
            context_drops = find_contexts(search.f(ablation), circuit)
            contexts = {node: context for node, (context, _) in context_drops.items()}
            rows = measure_minimality(heldout.f(ablation), circuit, contexts, seed)
            add(ablation, "minimality", rows)
        condition = "(e)"
        for ablation in EVIDENCE_ABLATIONS:
            f = heldout.f(ablation)
            controls = measure_random_controls(f, circuit, ranking, seed, rules=1)
            add(ablation, "random_controls", controls)
    except BudgetError:
        return evidence, condition
    return evidence, None


def measure_completeness(
    f: Faithfulness, circuit: NodeSet, ranking: Sequence[Node], seed: int
) -> Completeness | None:
    """Measure the largest gap inside the circuit and the largest outside; None if f is null.

    Args:
        f: f on one split under one ablation.
        circuit: the circuit.
        ranking: all nodes, largest screened effect first.
        seed: of the nodes outside that are chosen at random.
    """
    if not f.is_defined:
        return None
    outside, how_chosen = choose_outside_nodes(f, circuit, ranking, seed)
    gaps_in = measure_gaps_in(f, circuit)
    gaps_out = measure_gaps_out(f, circuit, outside)
    worst_in = max(gaps_in, key=lambda node: gaps_in[node], default=None)
    worst_out = max(gaps_out, key=lambda node: gaps_out[node], default=None)
    return Completeness(
        max_gap_in=0.0 if worst_in is None else gaps_in[worst_in],
        node_in=None if worst_in is None else str(worst_in),
        max_gap_out=0.0 if worst_out is None else gaps_out[worst_out],
        node_out=None if worst_out is None else str(worst_out),
        n_out=len(outside),
        n_out_possible=len(f.everything - circuit),
        chosen=how_chosen,
    )


def is_complete(completeness: Completeness) -> bool:
    """Whether condition (c) holds, by point values; a gap that was not measured counts as 0."""
    gap_in = completeness.max_gap_in or 0.0
    gap_out = completeness.max_gap_out or 0.0
    return gap_in <= thresholds.MAX_GAP_IN and gap_out <= thresholds.MAX_GAP_OUT


def find_contexts(f: SetFunction, circuit: NodeSet) -> dict[Node, tuple[NodeSet, float]]:
    """For each node of the circuit, find the context in which taking it out changes f most.

    Contexts are none, each other node, and the best other node with a second one.

    Returns:
        The context of each node, and how much f changes in it.
    """
    nodes = sorted(circuit)
    without_one = [circuit - {a} for a in nodes]
    without_two = [circuit - {a, b} for i, a in enumerate(nodes) for b in nodes[i + 1 :]]
    f([circuit, *without_one, *without_two], "minimality")
    best: dict[Node, tuple[NodeSet, float]] = {
        v: _find_largest_drop(f, circuit, v, [frozenset(), *_single_contexts(nodes, v)])
        for v in nodes
    }
    # A second node is added to the best context of one node. All sets that this needs are measured
    # in one batch first.
    contexts_of_two: dict[Node, list[NodeSet]] = {}
    for v in nodes:
        if len(nodes) > 1:
            single, _ = _find_largest_drop(f, circuit, v, _single_contexts(nodes, v))
            contexts_of_two[v] = _extend_context(nodes, v, single)
    without_three: list[NodeSet] = []
    for v, contexts in contexts_of_two.items():
        without_three += [circuit - context for context in contexts]
        without_three += [circuit - context - {v} for context in contexts]
    f(without_three, "minimality")
    for v, contexts in contexts_of_two.items():
        if contexts:
            context, drop = _find_largest_drop(f, circuit, v, contexts)
            if drop > best[v][1] + MIN_IMPROVEMENT:
                best[v] = context, drop
    return best


def _single_contexts(nodes: Sequence[Node], v: Node) -> list[NodeSet]:
    """Return the contexts of one node other than `v`."""
    return [frozenset({w}) for w in nodes if w != v]


def _extend_context(nodes: Sequence[Node], v: Node, context: NodeSet) -> list[NodeSet]:
    """Return the context with each further node but `v`."""
    return [context | {x} for x in nodes if x != v and x not in context]


def _find_largest_drop(
    f: SetFunction, circuit: NodeSet, v: Node, contexts: Sequence[NodeSet]
) -> tuple[NodeSet, float]:
    """Find the context in which taking `v` out changes f most, and how much it changes it."""
    sets = [
        node_set
        for context in contexts
        for node_set in (circuit - context, circuit - context - {v})
    ]
    values = f(sets, "minimality")
    drops = (values[0::2] - values[1::2]).abs().tolist()
    best = 0
    for number, drop in enumerate(drops):
        if drop > drops[best] + MIN_IMPROVEMENT:
            best = number
    return contexts[best], drops[best]


def measure_minimality(
    f: Faithfulness, circuit: NodeSet, contexts: Mapping[Node, NodeSet], seed: int
) -> tuple[Minimality, ...] | None:
    """Measure each node's drop in its context, with p-values; None if f is null.

    Args:
        f: f on one split under one ablation.
        circuit: the circuit.
        contexts: the context of each node.
        seed: of the sign-flip tests.
    """
    if not f.is_defined:
        return None
    nodes = sorted(circuit)
    sets_with = {v: circuit - contexts[v] for v in nodes}
    sets_without = {v: circuit - contexts[v] - {v} for v in nodes}
    f([node_set for v in nodes for node_set in (sets_with[v], sets_without[v])], "minimality")
    drops: list[float] = []
    p_values: list[float] = []
    for v in nodes:
        share = f.per_pair_difference(sets_with[v], sets_without[v]).numpy()
        drops.append(abs(float(share.mean())))
        p_values.append(sign_flip_test(share, seed, MINIMALITY_FLIPS))
    return tuple(
        Minimality(
            node=str(v),
            context=tuple(str(w) for w in sorted(contexts[v])),
            drop=drop,
            p=p,
            p_holm=p_holm,
        )
        for v, drop, p, p_holm in zip(nodes, drops, p_values, holm(p_values), strict=True)
    )


def is_needed(row: Minimality) -> bool:
    """Whether a node passes condition (d); a number that was not measured does not pass."""
    drop = row.drop or 0.0
    p_holm = 1.0 if row.p_holm is None else row.p_holm
    return drop >= thresholds.MIN_DROP and p_holm <= thresholds.SIGNIFICANCE_LEVEL
