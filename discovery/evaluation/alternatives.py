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
from discovery.evaluation.completeness import gaps_in, gaps_out, outside_to_try
from discovery.evaluation.faithfulness import Faithfulness, Resampled
from discovery.graph import Control, RandomControls
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

Group = tuple[list[Node], int]  # nodes of one kind (and layer), and how many of them are taken


def random_controls(f: Faithfulness, circuit: NodeSet, screened: Sequence[Node], seed: int) -> RandomControls | None:
    """Both controls; None where f is null."""
    if not f.defined:
        return None
    return RandomControls(
        size=rivals(f, circuit, screened, seed, by_layer=False)[1],
        layer=rivals(f, circuit, screened, seed, by_layer=True)[1],
    )


def _groups(f: Faithfulness | Resampled, circuit: NodeSet, *, by_layer: bool) -> list[Group]:
    def kind(node: Node) -> tuple[str, int]:
        return node.kind, (node.layer or 0) if by_layer else 0

    members: dict[tuple[str, int], list[Node]] = {}
    for node in sorted(f.everything):
        members.setdefault(kind(node), []).append(node)
    taken = Counter(kind(node) for node in circuit)
    return [(nodes, taken[key]) for key, nodes in sorted(members.items())]


def alternatives(groups: Sequence[Group], circuit: NodeSet, seed: int) -> tuple[list[NodeSet], int]:
    """Distinct sets other than the circuit that take as many from each group: all, or 200 drawn; and how many there are."""
    possible = math.prod(math.comb(len(nodes), count) for nodes, count in groups) - 1
    if possible <= thresholds.CONTROLS:
        return [made for made in _all(groups) if made != circuit], possible
    generator = random.Random(f"controls-{seed}")
    drawn: dict[NodeSet, None] = {}
    while len(drawn) < thresholds.CONTROLS:
        made = frozenset(node for nodes, count in groups for node in generator.sample(nodes, count))
        if made != circuit:
            drawn[made] = None
    return list(drawn), possible


def _all(groups: Sequence[Group]) -> Iterator[NodeSet]:
    for parts in itertools.product(*(itertools.combinations(nodes, count) for nodes, count in groups)):
        yield frozenset(itertools.chain.from_iterable(parts))


def rivals(
    f: Faithfulness | Resampled, circuit: NodeSet, screened: Sequence[Node], seed: int, *, by_layer: bool
) -> tuple[list[NodeSet], Control | None]:
    """The alternatives that are as good, and what they say of the circuit; None where there is no alternative."""
    others, possible = alternatives(_groups(f, circuit, by_layer=by_layer), circuit, seed)
    if not others:
        return [], None
    pairs = min(thresholds.CONTROL_PAIRS, f.n_pairs)
    values = f([circuit, *others], "random circuits", pairs)
    own = abs(1 - float(values[0])) + thresholds.TIE
    close = [made for made, value in zip(others, values[1:].tolist(), strict=True) if abs(1 - value) <= own]
    found = [made for made in close if _stands(f, made, screened, seed, pairs)]
    return found, Control(n=len(others), n_possible=possible, as_good=len(found), p=(1 + len(found)) / (1 + len(others)))


def _stands(f: Faithfulness | Resampled, made: NodeSet, screened: Sequence[Node], seed: int, pairs: int) -> bool:
    """Whether an alternative too meets (b) and (c)."""
    low, high = thresholds.NECESSARY
    if not low <= float(f([f.everything - made], "random circuits", pairs)[0]) <= high:
        return False
    if max(gaps_in(f, made, pairs).values(), default=0.0) > thresholds.GAP_IN:
        return False
    tried, _ = outside_to_try(f, made, screened, seed)
    return max(gaps_out(f, made, tried, pairs).values(), default=0.0) <= thresholds.GAP_OUT


def better(control: Control) -> bool:
    """Whether the circuit beats these alternatives."""
    if (control.n or 0) < thresholds.FEWEST_CONTROLS:
        return control.as_good == 0
    return (control.p if control.p is not None else 1.0) <= thresholds.ALPHA
