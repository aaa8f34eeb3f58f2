"""f of every subset of a small model's nodes, and which circuits are the best: what a search is judged by.

One table of 2^N subsets under each ablation gives knockouts too, as complements. The optimum is every smallest set that meets (a) to (d)
under both ablations on discovery pairs, as point values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.known_circuits.subset_conditions import ConditionsBySubset
from discovery.backends.base import Backend
from discovery.engine import Meter
from discovery.evaluation import SplitEvaluator
from discovery.graph import EVIDENCE_ABLATIONS, EvidenceAblation
from discovery.methods.ablation import NodeSet
from discovery.sites import Node
from discovery.tasks.task import Task

SUBSETS_PER_CALL = 2048  # subsets at a time


@dataclass(frozen=True)
class SubsetTable:
    """f of every subset of `nodes` on one split, indexed by bit mask, under each ablation."""

    nodes: tuple[Node, ...]
    f: Mapping[EvidenceAblation, list[float]]
    forward_equivalents: float

    def f_of(self, circuit: NodeSet, ablation: EvidenceAblation) -> float:
        """f of one set."""
        return self.f[ablation][
            sum(1 << bit for bit, node in enumerate(self.nodes) if node in circuit)
        ]

    def distance(self, circuit: NodeSet) -> float:
        """|1 − f|, the larger of the two ablations'."""
        return max(abs(1 - self.f_of(circuit, ablation)) for ablation in EVIDENCE_ABLATIONS)

    def passing_sets(self) -> list[NodeSet]:
        """Every set that meets (a) to (d) under both ablations, the smallest first."""
        names = [str(node) for node in self.nodes]
        both = [
            set(ConditionsBySubset(names, self.f[ablation]).passing_sets())
            for ablation in EVIDENCE_ABLATIONS
        ]
        found = [frozenset(map(Node.parse, circuit)) for circuit in set.intersection(*both)]
        return sorted(found, key=lambda circuit: (len(circuit), sorted(circuit)))


def measure_all_subsets(model: Backend, task: Task, seed: int = 0) -> SubsetTable:
    """Measure every subset on all pairs of a task.

    Raises:
        ValueError: for more than 16 nodes.
    """
    nodes = model.info.nodes()
    if len(nodes) > 16:
        raise ValueError(
            f"{len(nodes)} nodes have {2 ** len(nodes):,} subsets, too many to tabulate"
        )
    meter = Meter()
    bench = SplitEvaluator.of(model, task, "all", seed, metric=None, memory=None, meter=meter)
    found: dict[EvidenceAblation, list[float]] = {}
    for ablation in EVIDENCE_ABLATIONS:
        f, values = bench.f(ablation), []
        for begin in range(0, 2 ** len(nodes), SUBSETS_PER_CALL):
            masks = range(begin, min(begin + SUBSETS_PER_CALL, 2 ** len(nodes)))
            values.append(f([nodes_of_mask(nodes, mask) for mask in masks], "every subset"))
        found[ablation] = torch.cat(values).tolist()
    return SubsetTable(nodes, found, meter.spent)


def find_smallest(passing: Sequence[NodeSet]) -> list[NodeSet]:
    """The optima among the sets that pass, which come smallest first."""
    return [circuit for circuit in passing if len(circuit) == len(passing[0])]


def nodes_of_mask(nodes: Sequence[Node], mask: int) -> NodeSet:
    """The nodes of a bit mask."""
    return frozenset(node for bit, node in enumerate(nodes) if mask >> bit & 1)
