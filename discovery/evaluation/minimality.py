"""Condition (d): every node of the circuit is needed in some context.

This is the minimality of Wang et al. (2023, arXiv 2211.00593), with Holm's correction over the
nodes. A node with a backup inside the circuit changes nothing alone, but does so once the backup is
taken out. So each node gets the context K (other nodes taken out with it) in which it matters most.
K is nothing, one node, or two nodes of which the second is added greedily; it is chosen on
discovery pairs and tested on held-out ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from discovery.evaluation import thresholds
from discovery.evaluation.faithfulness import Faithfulness, SetFunction
from discovery.graph import Minimality
from discovery.methods.ablation import NodeSet
from discovery.methods.statistics import holm, sign_flip_test
from discovery.sites import Node

DROP_SHARE = 0.5  # of the average share f(C) / |C| of a node
MIN_IMPROVEMENT = 1e-9  # a later context must be better by more than rounding


def minimal_drop(faithfulness: float, size: int) -> float:
    """Return δ = min(0.02, 0.5 · f(C) / |C|), the drop that every node must reach (d).

    δ is half of an average node's share of f(C): in a large circuit no node can carry 0.02 of the
    behaviour alone. It is 0 if f(C) is not positive, since (a) fails then anyway.

    Args:
        faithfulness: f(C) under one ablation.
        size: the number of heads and MLPs in the circuit.
    """
    if not size:
        return thresholds.MIN_DROP
    return max(0.0, min(thresholds.MIN_DROP, DROP_SHARE * faithfulness / size))


def find_contexts(f: SetFunction, circuit: NodeSet) -> dict[Node, tuple[NodeSet, float]]:
    """For each node of the circuit, find the context in which taking it out changes f most.

    Returns:
        The context of each node, and how much f changes in it.
    """
    nodes = sorted(circuit)
    without_one = [circuit - {a} for a in nodes]
    without_two = [circuit - {a, b} for i, a in enumerate(nodes) for b in nodes[i + 1 :]]
    f([circuit, *without_one, *without_two], "minimality")
    best: dict[Node, tuple[NodeSet, float]] = {
        v: _largest_drop(f, circuit, v, [frozenset(), *_single_contexts(nodes, v)]) for v in nodes
    }
    # A second node is added to the best context of one node. All sets that this needs are measured
    # in one batch first.
    contexts_of_two: dict[Node, list[NodeSet]] = {}
    for v in nodes:
        if len(nodes) > 1:
            single, _ = _largest_drop(f, circuit, v, _single_contexts(nodes, v))
            contexts_of_two[v] = _extend_context(nodes, v, single)
    without_three: list[NodeSet] = []
    for v, contexts in contexts_of_two.items():
        without_three += [circuit - context for context in contexts]
        without_three += [circuit - context - {v} for context in contexts]
    f(without_three, "minimality")
    for v, contexts in contexts_of_two.items():
        if contexts:
            context, drop = _largest_drop(f, circuit, v, contexts)
            if drop > best[v][1] + MIN_IMPROVEMENT:
                best[v] = context, drop
    return best


def find_largest_drops(f: SetFunction, circuit: NodeSet) -> dict[Node, float]:
    """Return how much each node of the circuit matters, for a search.

    A node that reaches the minimal drop (0.02) is not tried in larger contexts, which are the
    expensive part of `find_contexts`.
    """
    nodes = sorted(circuit)
    drops = {v: _largest_drop(f, circuit, v, [frozenset()])[1] for v in nodes}
    for v in nodes:
        if drops[v] < thresholds.MIN_DROP and len(nodes) > 1:
            single, drop = _largest_drop(f, circuit, v, _single_contexts(nodes, v))
            drops[v] = max(drops[v], drop)
            if drops[v] < thresholds.MIN_DROP and len(nodes) > 2:
                contexts = _extend_context(nodes, v, single)
                drops[v] = max(drops[v], _largest_drop(f, circuit, v, contexts)[1])
    return drops


def _single_contexts(nodes: Sequence[Node], v: Node) -> list[NodeSet]:
    return [frozenset({w}) for w in nodes if w != v]


def _extend_context(nodes: Sequence[Node], v: Node, context: NodeSet) -> list[NodeSet]:
    """Return the context with each further node but `v`."""
    return [context | {x} for x in nodes if x != v and x not in context]


def _largest_drop(
    f: SetFunction, circuit: NodeSet, v: Node, contexts: Sequence[NodeSet]
) -> tuple[NodeSet, float]:
    """Find the context in which taking `v` out changes f most, and how much it changes it."""
    sets = [kept for k in contexts for kept in (circuit - k, circuit - k - {v})]
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
    kept_with = {v: circuit - contexts[v] for v in nodes}
    kept_without = {v: circuit - contexts[v] - {v} for v in nodes}
    f([kept for v in nodes for kept in (kept_with[v], kept_without[v])], "minimality")
    drops: list[float] = []
    p_values: list[float] = []
    for v in nodes:
        share = f.per_pair_difference(kept_with[v], kept_without[v]).numpy()
        drops.append(abs(float(share.mean())))
        p_values.append(sign_flip_test(share, seed, thresholds.MINIMALITY_FLIPS))
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
    return drop >= thresholds.MIN_DROP and p_holm <= thresholds.ALPHA
