"""f of every subset of a small model's nodes, and the best circuits among them.

This is what a search is judged by. One table of 2^N subsets under each ablation gives the knockouts
too, as complements. The optimum is every smallest set that meets (a) to (d) under both ablations on
discovery pairs, as point values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.known_circuits.subset_conditions import (
    ConditionsBySubset,
    find_passing_sets,
)
from benchmarks.methods.evaluator import new_evaluator
from discovery.backends.base import Backend
from discovery.graph import EVIDENCE_ABLATIONS, EvidenceAblation
from discovery.methods.ablation import NodeSet
from discovery.sites import Node
from discovery.tasks.task import Task

MAX_NODES = 16
SUBSETS_PER_CALL = 2048


@dataclass(frozen=True)
class SubsetTable:
    """f of every subset of `nodes` on one split, indexed by bit mask, under each ablation."""

    nodes: tuple[Node, ...]
    f: Mapping[EvidenceAblation, list[float]]
    forward_equivalents: float

    def f_of(self, circuit: NodeSet, ablation: EvidenceAblation) -> float:
        """Return f of one set."""
        mask = sum(1 << bit for bit, node in enumerate(self.nodes) if node in circuit)
        return self.f[ablation][mask]

    def distance(self, circuit: NodeSet) -> float:
        """Return |1 − f|, the larger of the two ablations'."""
        return max(abs(1 - self.f_of(circuit, ablation)) for ablation in EVIDENCE_ABLATIONS)

    def passing_sets(self) -> list[NodeSet]:
        """Return every set that meets (a) to (d), the smallest first."""
        names = [str(node) for node in self.nodes]
        passing = find_passing_sets(
            [ConditionsBySubset(names, self.f[ablation]) for ablation in EVIDENCE_ABLATIONS]
        )
        circuits = [frozenset(map(Node.parse, circuit)) for circuit in passing]
        return sorted(circuits, key=lambda circuit: (len(circuit), sorted(circuit)))


def measure_all_subsets(model: Backend, task: Task, seed: int = 0) -> SubsetTable:
    """Measure f of every subset on all pairs of a task.

    Raises:
        ValueError: if the model has more than 16 nodes.
    """
    nodes = model.info.nodes()
    n_subsets = 2 ** len(nodes)
    if len(nodes) > MAX_NODES:
        raise ValueError(
            f"{len(nodes)} nodes have {n_subsets:,} subsets, which are too many to measure:"
            f" use a model of at most {MAX_NODES} nodes."
        )
    evaluator = new_evaluator(model, task, seed)
    f_by_ablation: dict[EvidenceAblation, list[float]] = {}
    for ablation in EVIDENCE_ABLATIONS:
        f = evaluator.f(ablation)
        values = []
        for begin in range(0, n_subsets, SUBSETS_PER_CALL):
            masks = range(begin, min(begin + SUBSETS_PER_CALL, n_subsets))
            values.append(f([nodes_of_mask(nodes, mask) for mask in masks], "every subset"))
        f_by_ablation[ablation] = torch.cat(values).tolist()
    return SubsetTable(nodes, f_by_ablation, evaluator.engine.meter.spent)


def find_smallest(passing: Sequence[NodeSet]) -> list[NodeSet]:
    """Return the smallest of the sets that pass, which are given smallest first."""
    return [circuit for circuit in passing if len(circuit) == len(passing[0])]


def nodes_of_mask(nodes: Sequence[Node], mask: int) -> NodeSet:
    """Return the nodes of a bit mask."""
    return frozenset(node for bit, node in enumerate(nodes) if mask >> bit & 1)
