"""Condition (d): every node of the circuit is needed in some context (Wang et al. 2023, minimality; Holm over nodes).

A node that has a backup inside the circuit changes nothing alone, but does once the backup is out. So each node gets the
context K in which it matters most, chosen on discovery pairs and tested on held-out ones: nothing out, one node out, or two
(the second added greedily).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import permutation_test

from discovery.evaluation import thresholds
from discovery.evaluation.faithfulness import Faithfulness, ResampledFaithfulness
from discovery.graph import Minimality
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

MIN_IMPROVEMENT = 1e-9  # a larger context must be better by more than rounding


def find_contexts(
    f: Faithfulness | ResampledFaithfulness, circuit: NodeSet
) -> dict[Node, tuple[NodeSet, float]]:
    """For each node of the circuit, the context in which taking it out changes f most, and by how much."""
    nodes = sorted(circuit)
    singles = [circuit - {a} for a in nodes]
    doubles = [circuit - {a, b} for i, a in enumerate(nodes) for b in nodes[i + 1 :]]
    f([circuit, *singles, *doubles], "minimality")
    best: dict[Node, tuple[NodeSet, float]] = {}
    for v in nodes:
        options: list[NodeSet] = [frozenset(), *(frozenset({w}) for w in nodes if w != v)]
        best[v] = _largest_drop(f, circuit, v, options)
    triples = []
    for v in nodes:
        first = _best_single_context(f, circuit, v, nodes)
        if first is not None:
            triples += [circuit - first - {x} for x in nodes if x != v and x not in first]
            triples += [circuit - first - {x, v} for x in nodes if x != v and x not in first]
    f(triples, "minimality")
    for v in nodes:
        first = _best_single_context(f, circuit, v, nodes)
        if first is not None:
            options = [first | {x} for x in nodes if x != v and x not in first]
            further = _largest_drop(f, circuit, v, options) if options else (frozenset(), 0.0)
            if further[1] > best[v][1] + MIN_IMPROVEMENT:
                best[v] = further
    return best


def find_largest_drops(
    f: Faithfulness | ResampledFaithfulness, circuit: NodeSet
) -> dict[Node, float]:
    """How much each node of the circuit matters, looking no further than the first context that shows it does (0.02).

    For searching: a node that matters alone is not tried in larger contexts, which are the dear part of `contexts`.
    """
    nodes = sorted(circuit)
    found = {v: _largest_drop(f, circuit, v, [frozenset()])[1] for v in nodes}
    for v in nodes:
        if found[v] < thresholds.MIN_DROP and len(nodes) > 1:
            first, drop = _largest_drop(f, circuit, v, [frozenset({w}) for w in nodes if w != v])
            found[v] = max(found[v], drop)
            if found[v] < thresholds.MIN_DROP and len(nodes) > 2:
                options = [first | {x} for x in nodes if x != v and x not in first]
                found[v] = max(found[v], _largest_drop(f, circuit, v, options)[1])
    return found


def _best_single_context(
    f: Faithfulness | ResampledFaithfulness, circuit: NodeSet, v: Node, nodes: Sequence[Node]
) -> NodeSet | None:
    """The best context of one node, to which a second is added."""
    options = [frozenset({w}) for w in nodes if w != v]
    return _largest_drop(f, circuit, v, options)[0] if options else None


def _largest_drop(
    f: Faithfulness | ResampledFaithfulness, circuit: NodeSet, v: Node, options: Sequence[NodeSet]
) -> tuple[NodeSet, float]:
    values = f([s for k in options for s in (circuit - k, circuit - k - {v})], "minimality")
    drops = (values[0::2] - values[1::2]).abs().tolist()
    best = 0
    for n, drop in enumerate(drops):
        if drop > drops[best] + MIN_IMPROVEMENT:
            best = n
    return options[best], drops[best]


def measure_minimality(
    f: Faithfulness, circuit: NodeSet, contexts: Mapping[Node, NodeSet], seed: int
) -> tuple[Minimality, ...] | None:
    """Each node's drop in its context, with p-values; None where f is null."""
    if not f.is_defined:
        return None
    nodes = sorted(circuit)
    f(
        [s for v in nodes for s in (circuit - contexts[v], circuit - contexts[v] - {v})],
        "minimality",
    )
    rows = []
    for v in nodes:
        share = f.per_pair_difference(circuit - contexts[v], circuit - contexts[v] - {v}).numpy()
        rows.append((v, abs(float(share.mean())), sign_flip_test(share, seed)))
    corrected = holm([p for _, _, p in rows])
    return tuple(
        Minimality(
            node=str(v),
            context=tuple(str(w) for w in sorted(contexts[v])),
            drop=drop,
            p=p,
            p_holm=q,
        )
        for (v, drop, p), q in zip(rows, corrected, strict=True)
    )


def sign_flip_test(differences: np.ndarray, seed: int) -> float:
    """Two-sided p of a paired sign-flip test: how often do random signs give as large a mean?"""
    if len(differences) < 2 or not np.any(differences):  # one pair: both signs are as large
        return 1.0
    generator = np.random.default_rng(seed)
    test = permutation_test(
        (differences,),
        _mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=thresholds.MINIMALITY_FLIPS,
        alternative="two-sided",
        rng=generator,
    )
    return float(test.pvalue)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(values.mean(axis=axis))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction."""
    order = sorted(range(len(p_values)), key=lambda n: p_values[n])
    corrected, running = [0.0] * len(p_values), 0.0
    for rank, n in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[n]))
        corrected[n] = running
    return corrected


def is_needed(row: Minimality) -> bool:
    """Whether a node passes (d)."""
    return (row.drop or 0.0) >= thresholds.MIN_DROP and (
        row.p_holm if row.p_holm is not None else 1.0
    ) <= thresholds.ALPHA
