"""Condition (e): is this circuit better than others of its size?

Size-matched alternatives have as many heads and as many MLPs; layer-matched ones as many of each in every layer, which is
the harder control, since late layers alone carry much of any behaviour. An alternative is as good only if it is as faithful *and* is
itself necessary and complete: a circuit plus a bystander for a bystander is not a rival.
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
from discovery.evaluation.faithfulness import Faithfulness, ResampledFaithfulness
from discovery.graph import Control, RandomControls
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

NodeGroup = tuple[list[Node], int]  # nodes of one kind (and layer), and how many of them are taken


def measure_random_controls(
    f: Faithfulness, circuit: NodeSet, screened: Sequence[Node], seed: int
) -> RandomControls | None:
    """Both controls; None where f is null."""
    if not f.is_defined:
        return None
    return RandomControls(
        size=find_rivals(f, circuit, screened, seed, by_layer=False)[1],
        layer=find_rivals(f, circuit, screened, seed, by_layer=True)[1],
    )


def _groups(
    f: Faithfulness | ResampledFaithfulness, circuit: NodeSet, *, by_layer: bool
) -> list[NodeGroup]:
    def kind(node: Node) -> tuple[str, int]:
        return node.kind, (node.layer or 0) if by_layer else 0

    members: dict[tuple[str, int], list[Node]] = {}
    for node in sorted(f.everything):
        members.setdefault(kind(node), []).append(node)
    taken = Counter(kind(node) for node in circuit)
    return [(nodes, taken[key]) for key, nodes in sorted(members.items())]


def draw_alternatives(
    groups: Sequence[NodeGroup], circuit: NodeSet, seed: int
) -> tuple[list[NodeSet], int]:
    """Distinct sets other than the circuit that take as many from each group: all, or 200 drawn; and how many there are."""
    possible = math.prod(math.comb(len(nodes), count) for nodes, count in groups) - 1
    if possible <= thresholds.MAX_ALTERNATIVES:
        return [made for made in _enumerate_sets(groups) if made != circuit], possible
    generator = random.Random(f"controls-{seed}")
    drawn: dict[NodeSet, None] = {}
    while len(drawn) < thresholds.MAX_ALTERNATIVES:
        made = frozenset(node for nodes, count in groups for node in generator.sample(nodes, count))
        if made != circuit:
            drawn[made] = None
    return list(drawn), possible


def _enumerate_sets(groups: Sequence[NodeGroup]) -> Iterator[NodeSet]:
    for parts in itertools.product(
        *(itertools.combinations(nodes, count) for nodes, count in groups)
    ):
        yield frozenset(itertools.chain.from_iterable(parts))


def find_rivals(
    f: Faithfulness | ResampledFaithfulness,
    circuit: NodeSet,
    screened: Sequence[Node],
    seed: int,
    *,
    by_layer: bool,
) -> tuple[list[NodeSet], Control | None]:
    """The alternatives that are as good, and what they say of the circuit; None where there is no alternative."""
    others, possible = draw_alternatives(_groups(f, circuit, by_layer=by_layer), circuit, seed)
    if not others:
        return [], None
    pairs = min(thresholds.MAX_ALTERNATIVE_PAIRS, f.n_pairs)
    values = f([circuit, *others], "random circuits", pairs)
    own = abs(1 - float(values[0])) + thresholds.FAITHFULNESS_TIE
    close = [
        made
        for made, value in zip(others, values[1:].tolist(), strict=True)
        if abs(1 - value) <= own
    ]
    found = [made for made in close if _meets_b_and_c(f, made, screened, seed, pairs)]
    return found, Control(
        n=len(others),
        n_possible=possible,
        as_good=len(found),
        p=(1 + len(found)) / (1 + len(others)),
    )


def _meets_b_and_c(
    f: Faithfulness | ResampledFaithfulness,
    made: NodeSet,
    screened: Sequence[Node],
    seed: int,
    pairs: int,
) -> bool:
    """Whether an alternative too meets (b) and (c)."""
    low, high = thresholds.KNOCKOUT_BAND
    if not low <= float(f([f.everything - made], "random circuits", pairs)[0]) <= high:
        return False
    if max(measure_gaps_in(f, made, pairs).values(), default=0.0) > thresholds.MAX_GAP_IN:
        return False
    tried, _ = choose_outside_nodes(f, made, screened, seed)
    return (
        max(measure_gaps_out(f, made, tried, pairs).values(), default=0.0) <= thresholds.MAX_GAP_OUT
    )


def beats_alternatives(control: Control) -> bool:
    """Whether the circuit beats these alternatives."""
    if (control.n or 0) < thresholds.MIN_ALTERNATIVES_FOR_P:
        return control.as_good == 0
    return (control.p if control.p is not None else 1.0) <= thresholds.ALPHA
