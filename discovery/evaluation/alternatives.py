"""Condition (e): is this circuit better than others of its size?

Size-matched alternatives have as many heads and as many MLPs. Layer-matched ones have as many of
each in every layer; this is the harder control, since late layers alone carry much of any
behaviour. An alternative is as good only if it is as faithful *and* is itself necessary and
complete: a circuit with one node exchanged for an irrelevant one is no rival.

Most alternatives keep nothing of the behaviour. So each is measured on a few pairs first, and only
those that are anywhere near the circuit on all 32. If more than 200 sets exist, a sample of 200 is
drawn. It ends after 39 sets if none of them is as good (p is 0.025 then), and as soon as so many
are as good that the condition can only fail.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence

from discovery.evaluation import thresholds
from discovery.evaluation.completeness import (
    choose_outside_nodes,
    measure_gaps_in,
    measure_gaps_out,
)
from discovery.evaluation.faithfulness import Faithfulness, SetFunction
from discovery.graph import RULES_VERSION, Control, RandomControls, RulesVersion
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

CONTROL_LABEL = "random circuits"
ALTERNATIVE_SCREENING_PAIRS = 8  # each alternative is first measured on so many pairs
CLEAR_DISTANCES = {8: 0.5, 16: 0.25}  # |1 − f| that is worse by so much on so many pairs is worse
CLEAR_GAP = 0.06  # a gap (c) that is smaller than its limit by so much on the first pairs is small
BATCH_SIZE = 23  # alternatives that are compared at once after the first ones
NODES_PER_STEP = 8  # gaps of an alternative that are measured at once

NodeGroup = tuple[list[Node], int]
"""The nodes of one kind (and layer), and how many of them a set takes."""


def measure_random_controls(
    f: Faithfulness,
    circuit: NodeSet,
    ranking: Sequence[Node],
    seed: int,
    rules: RulesVersion = RULES_VERSION,
) -> RandomControls | None:
    """Compare the circuit with size-matched and layer-matched alternatives; None if f is null.

    Args:
        f: f on one split under one ablation.
        circuit: the circuit.
        ranking: all nodes, largest screened effect first.
        seed: of what is drawn at random.
        rules: the version of the rules; version 1 measures every alternative on 32 pairs.
    """
    if not f.is_defined:
        return None
    return RandomControls(
        size=find_rivals(f, circuit, ranking, seed, by_layer=False, rules=rules)[1],
        layer=find_rivals(f, circuit, ranking, seed, by_layer=True, rules=rules)[1],
    )


def find_rivals(
    f: SetFunction,
    circuit: NodeSet,
    ranking: Sequence[Node],
    seed: int,
    *,
    by_layer: bool,
    rules: RulesVersion = RULES_VERSION,
) -> tuple[list[NodeSet], Control | None]:
    """Find the alternatives that are as good as the circuit.

    Args:
        f: f under one ablation.
        circuit: the circuit.
        ranking: all nodes, largest screened effect first.
        seed: of what is drawn at random.
        by_layer: whether alternatives match the circuit layer by layer, or only in size.
        rules: the version of the rules; version 1 measures every alternative on 32 pairs.

    Returns:
        The alternatives that are as good, and the comparison for the record; None if there is no
        alternative.
    """
    groups = _group_nodes(f, circuit, by_layer=by_layer)
    alternatives, n_possible = draw_alternatives(groups, circuit, seed)
    if not alternatives:
        return [], None
    pairs = min(thresholds.MAX_ALTERNATIVE_PAIRS, f.n_pairs)
    batches = [alternatives]
    max_rivals = len(alternatives)
    if rules != 1 and n_possible > thresholds.MAX_ALTERNATIVES:
        first = thresholds.FIRST_ALTERNATIVES
        ends = [0, *range(first, len(alternatives), BATCH_SIZE), len(alternatives)]
        batches = [alternatives[begin:end] for begin, end in itertools.pairwise(ends)]
        # (e) fails from here on.
        max_rivals = int(thresholds.SIGNIFICANCE_LEVEL * (1 + len(alternatives)))
    rivals: list[NodeSet] = []
    n_compared = 0
    for batch in batches:
        near = _as_faithful_sets(f, circuit, batch, pairs, rules)
        as_good = (nodes for nodes in near if _meets_b_and_c(f, nodes, ranking, seed, pairs))
        rivals += itertools.islice(as_good, max_rivals - len(rivals))
        n_compared += len(batch)
        if not rivals or len(rivals) >= max_rivals:
            break
    return rivals, Control(
        n=n_compared,
        n_possible=n_possible,
        as_good=len(rivals),
        p=(1 + len(rivals)) / (1 + n_compared),
    )


def _as_faithful_sets(
    f: SetFunction,
    circuit: NodeSet,
    alternatives: Sequence[NodeSet],
    pairs: int,
    rules: RulesVersion,
) -> list[NodeSet]:
    """Return the alternatives whose |1 − f| is no larger than the circuit's."""
    (own,) = f([circuit], CONTROL_LABEL, pairs).tolist()
    max_distance = abs(1 - own) + thresholds.FAITHFULNESS_TIE
    near = list(alternatives)
    for few, clear_distance in CLEAR_DISTANCES.items() if rules != 1 else ():
        screened = f(near, CONTROL_LABEL, min(few, pairs)).tolist()
        near = [
            nodes
            for nodes, value in zip(near, screened, strict=True)
            if abs(1 - value) <= max_distance + clear_distance
        ]
    values = f(near, CONTROL_LABEL, pairs).tolist()
    return [
        nodes for nodes, value in zip(near, values, strict=True) if abs(1 - value) <= max_distance
    ]


def draw_alternatives(
    groups: Sequence[NodeGroup], circuit: NodeSet, seed: int
) -> tuple[list[NodeSet], int]:
    """Draw distinct sets other than the circuit that take as many nodes from each group.

    Returns:
        All such sets if there are at most 200, else 200 of them at random; and how many there are.
    """
    n_possible = math.prod(math.comb(len(nodes), count) for nodes, count in groups) - 1
    if n_possible <= thresholds.MAX_ALTERNATIVES:
        return [nodes for nodes in _enumerate_sets(groups) if nodes != circuit], n_possible
    generator = random.Random(f"controls-{seed}")
    alternatives: dict[NodeSet, None] = {}
    while len(alternatives) < thresholds.MAX_ALTERNATIVES:
        alternative = frozenset(
            node for nodes, count in groups for node in generator.sample(nodes, count)
        )
        if alternative != circuit:
            alternatives[alternative] = None
    return list(alternatives), n_possible


def beats_alternatives(control: Control) -> bool:
    """Whether the circuit beats these alternatives.

    With fewer than 19 alternatives no p can reach 0.05, so none of them may be as good.
    """
    if (control.n or 0) < thresholds.MIN_ALTERNATIVES_FOR_P:
        return control.as_good == 0
    return (control.p if control.p is not None else 1.0) <= thresholds.SIGNIFICANCE_LEVEL


def _group_nodes(f: SetFunction, circuit: NodeSet, *, by_layer: bool) -> list[NodeGroup]:
    """Group the universe by kind (and layer), and count how many of each group the circuit has."""

    def group_of(node: Node) -> tuple[str, int]:
        return node.kind, (node.layer or 0) if by_layer else 0

    members: dict[tuple[str, int], list[Node]] = {}
    for node in sorted(f.everything):
        members.setdefault(group_of(node), []).append(node)
    counts = Counter(group_of(node) for node in circuit)
    return [(nodes, counts[group]) for group, nodes in sorted(members.items())]


def _enumerate_sets(groups: Sequence[NodeGroup]) -> Iterator[NodeSet]:
    choices = (itertools.combinations(nodes, count) for nodes, count in groups)
    for parts in itertools.product(*choices):
        yield frozenset(itertools.chain.from_iterable(parts))


def _meets_b_and_c(
    f: SetFunction, nodes: NodeSet, ranking: Sequence[Node], seed: int, pairs: int
) -> bool:
    """Whether an alternative too is necessary (b) and complete (c), by point values.

    All gaps are measured on a few pairs first. Those that are not clearly small are measured on all
    pairs, the largest first and a few at a time, because the first one that is too large decides.
    """
    low, high = thresholds.KNOCKOUT_BAND
    if not low <= float(f([f.everything - nodes], CONTROL_LABEL, pairs)[0]) <= high:
        return False
    few = min(ALTERNATIVE_SCREENING_PAIRS, pairs)
    outside, _ = choose_outside_nodes(f, nodes, ranking, seed)
    inside = sorted(nodes)
    excess_on_few = {
        **_excesses(f, nodes, [], outside, few),
        **_excesses(f, nodes, inside, [], few),
    }
    near = [v for v, excess in excess_on_few.items() if excess > -CLEAR_GAP or pairs == few]
    by_excess = sorted(near, key=lambda v: (-excess_on_few[v], v))
    for begin in range(0, len(by_excess), NODES_PER_STEP):
        step = by_excess[begin : begin + NODES_PER_STEP]
        own = [u for u in step if u in nodes]
        others = [v for v in step if v not in nodes]
        if max(_excesses(f, nodes, own, others, pairs).values()) > 0:
            return False
    return True


def _excesses(
    f: SetFunction,
    circuit: NodeSet,
    inside: Sequence[Node],
    outside: Sequence[Node],
    pairs: int,
) -> dict[Node, float]:
    """Return by how much gaps (c) exceed their limits; a negative number if they do not."""
    gaps_in = measure_gaps_in(f, circuit, pairs, inside) if inside else {}
    gaps_out = measure_gaps_out(f, circuit, outside, pairs) if outside else {}
    return {
        **{u: gap - thresholds.MAX_GAP_IN for u, gap in gaps_in.items()},
        **{v: gap - thresholds.MAX_GAP_OUT for v, gap in gaps_out.items()},
    }
