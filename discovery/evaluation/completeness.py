"""Condition (c): the circuit leaves nothing out and carries nothing along.

This is the completeness of Wang et al. (2023, arXiv 2211.00593), in single steps. Taking a node
out must hurt the circuit as much as it hurts the model; if not, something outside backs it up.
Putting a node in must change nothing; if it does, something that matters was left out.

Nodes are checked as `sequential` describes. If there are more outside nodes than are checked one by
one, the others are added in random blocks of 8, in two partitions, and a block that changes f by
more than half of the limit is opened: its nodes are checked one by one. Many small effects of one
sign add up unnoticed by any single check, so all outside nodes with a positive effect, and all with
a negative one, are added together too. These two numbers decide nothing; large ones are reasons.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from discovery.evaluation import thresholds
from discovery.evaluation.faithfulness import Faithfulness, SetFunction
from discovery.evaluation.sequential import (
    NodeSelection,
    SetDifference,
    SetPair,
    check_sequentially,
    measure_differences,
    select_nodes,
    simultaneous_confidence,
)
from discovery.graph import BlockAdditions, BySide, Completeness, JointAddition, Side
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

PROGRESS_LABEL = "completeness"
INSIDE_LABEL = "completeness-inside"
BLOCK_SIZE = 8  # unchecked outside nodes that are added together
N_PARTITIONS = 2  # so that two nodes that cancel out in one block are apart in the other
OPENING_SHARE = 0.5  # of the limit; a block that changes f by more is opened
NODES_PER_STEP = 16  # of a check that ends with the first gap that is too large

MAX_GAPS: Mapping[Side, float] = {
    "inside": thresholds.MAX_GAP_IN,
    "outside": thresholds.MAX_GAP_OUT,
}


def measure_gaps_in(
    f: SetFunction,
    circuit: NodeSet,
    pairs: int | None = None,
    inside: Sequence[Node] | None = None,
) -> dict[Node, float]:
    """Return |f(C∖u) − f(U∖u)| for every u in C, or those of `inside`.

    The values are over all pairs, or the first so many.
    """
    nodes = sorted(circuit) if inside is None else list(inside)
    circuit_without = [circuit - {u} for u in nodes]
    model_without = [f.everything - {u} for u in nodes]
    values = f([*circuit_without, *model_without], PROGRESS_LABEL, pairs)
    n_nodes = len(nodes)
    return {u: abs(float(values[n] - values[n_nodes + n])) for n, u in enumerate(nodes)}


def measure_gaps_out(
    f: SetFunction, circuit: NodeSet, outside: Sequence[Node], pairs: int | None = None
) -> dict[Node, float]:
    """Return |f(C∪v) − f(C)| for each v in `outside`, over all pairs or the first so many."""
    values = f([circuit, *(circuit | {v} for v in outside)], PROGRESS_LABEL, pairs)
    return {v: abs(float(values[n + 1] - values[0])) for n, v in enumerate(outside)}


def choose_outside_nodes(
    f: SetFunction, circuit: NodeSet, ranking: Sequence[Node], seed: int
) -> tuple[list[Node], str | None]:
    """Choose which nodes outside the circuit are put in.

    Of at most 64 nodes all are, of more the 32 that rank highest and 32 at random.

    Args:
        f: gives the universe.
        circuit: the circuit.
        ranking: all nodes, largest screened effect first.
        seed: of the random nodes.

    Returns:
        The nodes, and how they were chosen; None if all are taken.
    """
    selection = select_nodes(f.everything - circuit, ranking, seed, PROGRESS_LABEL)
    if not selection.at_random:
        return selection.checked, None
    how_chosen = (
        f"the {len(selection.by_effect)} of largest screened effect and "
        f"{len(selection.at_random)} at random"
    )
    return selection.checked, how_chosen


def sets_inside(f: SetFunction, circuit: NodeSet, nodes: Iterable[Node]) -> dict[Node, SetPair]:
    """Return C∖u and U∖u for each of these nodes of the circuit."""
    return {u: (circuit - {u}, f.everything - {u}) for u in nodes}


def sets_outside(circuit: NodeSet, nodes: Iterable[Node]) -> dict[Node, SetPair]:
    """Return C∪v and C for each of these nodes outside."""
    return {v: (circuit | {v}, circuit) for v in nodes}


@dataclass
class SideCheck:
    """The nodes of one side, and the gaps of those that were checked.

    Attributes:
        side: inside or outside the circuit.
        selection: which nodes were checked.
        gaps: the signed gap of each checked node.
        opened_nodes: unchecked nodes that were checked after all, since their block mattered.
    """

    side: Side
    selection: NodeSelection
    gaps: dict[Node, SetDifference] = field(default_factory=dict)
    opened_nodes: list[Node] = field(default_factory=list)

    @property
    def worst(self) -> Node | None:
        """The node with the largest gap; None if no node was checked."""
        return max(self.gaps, key=lambda node: self.gaps[node].size, default=None)

    @property
    def unchecked_bound(self) -> float | None:
        """The 95% upper bound on the share of unchecked nodes beyond the limit."""
        beyond = {v for v, gap in self.gaps.items() if gap.size > MAX_GAPS[self.side]}
        return self.selection.bound_unchecked(beyond, self.opened_nodes)

    @property
    def n_unchecked(self) -> int:
        """How many nodes were not checked one by one."""
        return len(self.selection.unchecked) - len(self.opened_nodes)

    def lows(self, confidence: float) -> dict[Node, float]:
        """Return the lower bound of each gap."""
        return {node: gap.lowest_size(confidence) for node, gap in self.gaps.items()}


def measure_completeness(
    f: Faithfulness, circuit: NodeSet, ranking: Sequence[Node], seed: int
) -> Completeness | None:
    """Measure the gaps inside the circuit and outside; None if f is null.

    Args:
        f: f on one split under one ablation.
        circuit: the circuit.
        ranking: all nodes, largest screened effect first.
        seed: of the nodes that are chosen at random, and of the blocks.

    Raises:
        BudgetError: if the budget does not reach that far.
    """
    if not f.is_defined:
        return None
    inside = SideCheck("inside", select_nodes(circuit, ranking, seed, INSIDE_LABEL))
    outside = SideCheck(
        "outside", select_nodes(f.everything - circuit, ranking, seed, PROGRESS_LABEL)
    )
    n_tests = len(inside.selection.checked) + len(outside.selection.checked)
    inside.gaps = check_sequentially(
        f,
        sets_inside(f, circuit, inside.selection.checked),
        MAX_GAPS["inside"],
        PROGRESS_LABEL,
        n_tests,
        relative_to=(circuit, f.everything),
    )
    outside.gaps = check_sequentially(
        f,
        sets_outside(circuit, outside.selection.checked),
        MAX_GAPS["outside"],
        PROGRESS_LABEL,
        n_tests,
    )
    blocks, effects = _add_blocks(f, circuit, outside, seed)
    positive, negative = _add_all(f, circuit, effects)
    return _summarise(inside, outside, f.n_pairs).model_copy(
        update={"blocks": blocks, "joint_positive": positive, "joint_negative": negative}
    )


def _add_blocks(
    f: Faithfulness, circuit: NodeSet, outside: SideCheck, seed: int
) -> tuple[BlockAdditions | None, dict[Node, float]]:
    """Add the unchecked nodes in blocks, and check the nodes of blocks that matter.

    Returns:
        What the blocks do, and an effect for every outside node: its own gap, or the sum over the
        blocks that it was in.
    """
    effects = {v: gap.value for v, gap in outside.gaps.items()}
    unchecked = outside.selection.unchecked
    if not unchecked:
        return None, effects
    generator = random.Random(f"blocks-{seed}")
    blocks: list[list[Node]] = []
    for _ in range(N_PARTITIONS):
        order = generator.sample(unchecked, len(unchecked))
        blocks += [order[n : n + BLOCK_SIZE] for n in range(0, len(order), BLOCK_SIZE)]
    first = min(thresholds.FIRST_PAIRS, f.n_pairs)
    sets = [(circuit | set(block), circuit) for block in blocks]
    changes = [
        difference.value for difference in measure_differences(f, sets, PROGRESS_LABEL, first)
    ]
    max_change = OPENING_SHARE * MAX_GAPS["outside"]
    opened = [
        block for block, change in zip(blocks, changes, strict=True) if abs(change) > max_change
    ]
    outside.opened_nodes = sorted({v for block in opened for v in block})
    gaps = check_sequentially(
        f,
        sets_outside(circuit, outside.opened_nodes),
        MAX_GAPS["outside"],
        PROGRESS_LABEL,
        len(outside.gaps) + len(outside.opened_nodes),
        n_nearest=0,
    )
    outside.gaps |= gaps
    for block, change in zip(blocks, changes, strict=True):
        for v in block:
            effects[v] = effects.get(v, 0.0) + change
    effects |= {v: gap.value for v, gap in gaps.items()}
    return BlockAdditions(
        n=len(blocks),
        size=BLOCK_SIZE,
        max_change=max(map(abs, changes)),
        opened=len(opened),
    ), effects


def _add_all(
    f: Faithfulness, circuit: NodeSet, effects: Mapping[Node, float]
) -> tuple[JointAddition | None, JointAddition | None]:
    """Add all outside nodes with a positive effect together, and all with a negative one."""
    first = min(thresholds.FIRST_PAIRS, f.n_pairs)
    positive = frozenset(v for v, effect in effects.items() if effect > 0)
    negative = frozenset(v for v, effect in effects.items() if effect < 0)
    joint: list[JointAddition | None] = []
    for added in (positive, negative):
        changes = measure_differences(
            f, [(circuit | added, circuit)] if added else [], PROGRESS_LABEL, first
        )
        joint.append(JointAddition(n=len(added), change=changes[0].value) if changes else None)
    return joint[0], joint[1]


def _summarise(inside: SideCheck, outside: SideCheck, n_pairs: int) -> Completeness:
    confidence = simultaneous_confidence(len(inside.gaps) + len(outside.gaps))
    lows = {side.side: side.lows(confidence) for side in (inside, outside)}
    failing = [
        str(node)
        for side, by_node in lows.items()
        for node, low in sorted(by_node.items())
        if low > MAX_GAPS[side]
    ]
    worst_in = inside.worst
    worst_out = outside.worst

    def count_refined(side: SideCheck) -> int:
        return sum(gap.n == n_pairs for gap in side.gaps.values())

    return Completeness(
        max_gap_in=0.0 if worst_in is None else inside.gaps[worst_in].size,
        node_in=None if worst_in is None else str(worst_in),
        max_gap_out=0.0 if worst_out is None else outside.gaps[worst_out].size,
        node_out=None if worst_out is None else str(worst_out),
        low=BySide(
            inside=max(lows["inside"].values(), default=0.0),
            outside=max(lows["outside"].values(), default=0.0),
        ),
        failing=tuple(failing),
        checked=BySide(inside=len(inside.gaps), outside=len(outside.gaps)),
        unchecked=BySide(inside=inside.n_unchecked, outside=outside.n_unchecked),
        refined=BySide(inside=count_refined(inside), outside=count_refined(outside)),
        unchecked_bound=BySide(inside=inside.unchecked_bound, outside=outside.unchecked_bound),
    )


def has_small_gaps(f: Faithfulness, circuit: NodeSet, ranking: Sequence[Node], seed: int) -> bool:
    """Whether no checked node of a set has a gap beyond the limit, by point values.

    The check ends with the first gap that is too large. Outside nodes come first, those with the
    largest screened effect first.
    """
    rank = {node: number for number, node in enumerate(ranking)}
    outside = select_nodes(f.everything - circuit, ranking, seed, PROGRESS_LABEL).checked
    inside = select_nodes(circuit, ranking, seed, INSIDE_LABEL).checked
    sets: Mapping[Side, dict[Node, SetPair]] = {
        "outside": sets_outside(circuit, sorted(outside, key=lambda v: rank.get(v, len(rank)))),
        "inside": sets_inside(f, circuit, sorted(inside, key=lambda u: rank.get(u, len(rank)))),
    }
    for side, sets_by_node in sets.items():
        nodes = list(sets_by_node)
        for begin in range(0, len(nodes), NODES_PER_STEP):
            step = {v: sets_by_node[v] for v in nodes[begin : begin + NODES_PER_STEP]}
            gaps = check_sequentially(
                f,
                step,
                MAX_GAPS[side],
                PROGRESS_LABEL,
                len(nodes),
                n_nearest=0,
                relative_to=(circuit, f.everything) if side == "inside" else None,
            )
            if any(gap.size > MAX_GAPS[side] for gap in gaps.values()):
                return False
    return True
