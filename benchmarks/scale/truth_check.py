"""Checks by direct measurement that a hidden circuit is what its construction says.

All numbers are f under resample and under mean ablation, on some pairs of every template. With C
the truth and U all nodes:

- the model is right on every clean prompt, and the corruption takes at least half of the metric;
- |f(C) − 1| ≤ 0.12 and |f(U∖C)| ≤ 0.12; the rules allow 0.2;
- |f(C∖u) − f(U∖u)| ≤ 0.12 for every u in C; the rules allow 0.2;
- every u in C drops by at least 0.1 in some context K ⊆ C, under some ablation; the rules ask 0.02;
- no proper subset of C passes for a circuit: it misses (a), (b) or (c);
- every bystander v changes f by less than 0.01 = δ/2, in C, in C∖k for every k in C, and in U;
- all bystanders with a positive effect together change f(C) and f(U) by less than 0.1, and so do
  all with a negative one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from benchmarks.known_circuits.truth import ABLATIONS, Ablation
from benchmarks.scale.embedding import HiddenCircuit
from benchmarks.scale.sparse_forward import SparseForward

MAX_DEVIATION = 0.12
MIN_DROP = 0.1
MAX_BYSTANDER_EFFECT = 0.01
MAX_JOINT_EFFECT = 0.1
OUTSIDE_LIMIT = 0.1  # of condition (c)
BAND = 0.2  # of conditions (a) and (b), and of (c) inside the circuit
MAX_FULL_MODEL_CHECKS = 48  # of bystanders removed from the whole model


@dataclass(frozen=True, kw_only=True)
class TruthCheck:
    """What was measured on a hidden circuit. Each number is the worst of both ablations.

    Attributes:
        accuracy: the share of clean prompts on which the answer beats the wrong answer.
        corruption: the part of the metric that the corruption takes.
        deviation: the largest |f(C) − 1|.
        knockout: the largest |f(U∖C)|.
        gap_inside: the largest |f(C∖u) − f(U∖u)|.
        weakest_drop: the smallest over C of a node's largest drop, over contexts and ablations.
        passing_subsets: the proper subsets of C that would pass for a circuit.
        bystander: the largest effect of one bystander in C and in C without one node.
        bystander_in_full: the largest effect of removing one bystander from the whole model.
        n_in_full: for how many bystanders that was measured.
        joint: the largest effect of all bystanders of one sign together.
        bystander_quantiles: the 50%, 90% and 99% quantiles and the maximum of |f(C∪v) − f(C)|
            under resample ablation.
    """

    accuracy: float
    corruption: float
    deviation: float
    knockout: float
    gap_inside: float
    weakest_drop: float
    passing_subsets: tuple[tuple[str, ...], ...]
    bystander: float
    bystander_in_full: float
    n_in_full: int
    joint: float
    bystander_quantiles: tuple[float, ...]

    def failures(self) -> list[str]:
        """Return what does not hold, in words."""
        limits = {
            "deviation": MAX_DEVIATION,
            "knockout": MAX_DEVIATION,
            "gap_inside": MAX_DEVIATION,
            "bystander": MAX_BYSTANDER_EFFECT,
            "bystander_in_full": MAX_BYSTANDER_EFFECT,
            "joint": MAX_JOINT_EFFECT,
        }
        found = [
            f"{name} is {getattr(self, name):.4f}, above {limit}"
            for name, limit in limits.items()
            if getattr(self, name) >= limit
        ]
        if self.weakest_drop < MIN_DROP:
            found.append(f"weakest_drop is {self.weakest_drop:.4f}, below {MIN_DROP}")
        if self.accuracy != 1.0:
            found.append(f"accuracy is {self.accuracy:.3f}, below 1")
        if self.corruption < 0.5:
            found.append(f"corruption is {self.corruption:.3f}, below 0.5")
        if self.passing_subsets:
            found.append(f"{self.passing_subsets} would pass for the circuit")
        return found

    def record(self) -> dict[str, Any]:
        """Return the numbers for a JSON file."""
        return asdict(self) | {"failures": self.failures()}


def check_truth(case: HiddenCircuit) -> TruthCheck:
    """Measure a hidden circuit."""
    forward = SparseForward(case.known_circuit)
    inside = [node for node in case.known_circuit.universe if node in case.truth]
    outside = [node for node in case.known_circuit.universe if node not in case.truth]
    sample = _draw_sample(outside, case.seed)
    clean, corrupted = forward.metric_by_pair()
    tables = {ablation: _tabulate(forward, inside, ablation) for ablation in ABLATIONS}
    effects = {
        ablation: _outside_effects(forward, inside, outside, ablation) for ablation in ABLATIONS
    }
    circuit = frozenset(inside)
    universe = circuit | set(outside)
    gaps = [
        abs(tables[a][circuit - {node}] - forward.f(universe - {node}, a))
        for a in ABLATIONS
        for node in inside
    ]
    drops = [max(drop for a in ABLATIONS for drop in _drops(tables[a], node)) for node in inside]
    alone = [abs(effect) for a in ABLATIONS for node in outside for effect in effects[a][node]]
    in_full = [
        abs(1 - value)
        for a in ABLATIONS
        for value in forward.f_with_one_changed(universe, sample, a).values()
    ]
    return TruthCheck(
        accuracy=float((clean > 0).double().mean()),
        corruption=float((clean - corrupted).mean() / clean.mean()),
        deviation=max(abs(tables[a][circuit] - 1) for a in ABLATIONS),
        knockout=max(abs(forward.f(outside, a)) for a in ABLATIONS),
        gap_inside=max(gaps),
        weakest_drop=min(drops),
        passing_subsets=tuple(_passing_subsets(forward, tables, universe)),
        bystander=max(alone),
        bystander_in_full=max(in_full),
        n_in_full=len(sample),
        joint=max(_joint_effects(forward, circuit, effects)),
        bystander_quantiles=_quantiles([abs(effects["resample"][node][0]) for node in outside]),
    )


NodeNames = frozenset[str]
SubsetValues = dict[NodeNames, float]


def _tabulate(forward: SparseForward, inside: Sequence[str], ablation: Ablation) -> SubsetValues:
    """Return f of every subset of the circuit."""
    return {
        frozenset(subset): forward.f(subset, ablation)
        for size in range(len(inside) + 1)
        for subset in combinations(inside, size)
    }


def _drops(table: SubsetValues, node: str) -> Iterator[float]:
    """Yield |f(C∖K) − f(C∖K∖v)| of a node v in every context K."""
    for subset, value in table.items():
        if node in subset:
            yield abs(value - table[subset - {node}])


def _outside_effects(
    forward: SparseForward, inside: Sequence[str], outside: Sequence[str], ablation: Ablation
) -> dict[str, list[float]]:
    """Return what each bystander adds to f, in C and then in C without each of its nodes."""
    circuit = frozenset(inside)
    effects: dict[str, list[float]] = {node: [] for node in outside}
    for context in (circuit, *(circuit - {node} for node in inside)):
        base = forward.f(context, ablation)
        values = forward.f_with_one_changed(context, outside, ablation)
        for node in outside:
            effects[node].append(values[node] - base)
    return effects


def _joint_effects(
    forward: SparseForward,
    circuit: NodeNames,
    effects: Mapping[Ablation, Mapping[str, Sequence[float]]],
) -> Iterator[float]:
    """Yield what all bystanders of one sign change, added to C and removed from U."""
    universe = frozenset(forward.circuit.universe)
    for ablation, effects_of_nodes in effects.items():
        for sign in (1, -1):
            group = {node for node, found in effects_of_nodes.items() if sign * found[0] > 0}
            yield abs(forward.f(circuit | group, ablation) - forward.f(circuit, ablation))
            yield abs(1 - forward.f(universe - group, ablation))


def _quantiles(sizes: list[float]) -> tuple[float, ...]:
    """Return the 50%, 90% and 99% quantiles and the maximum."""
    in_order = sorted(sizes)
    last = len(in_order) - 1
    return tuple(in_order[min(int(share * len(in_order)), last)] for share in (0.5, 0.9, 0.99, 1))


def _passing_subsets(
    forward: SparseForward, tables: dict[Ablation, SubsetValues], universe: NodeNames
) -> Iterator[tuple[str, ...]]:
    """Yield the proper subsets of C that meet (a), (b) and (c), as far as C's nodes decide (c)."""
    circuit = max(tables["resample"], key=len)
    for subset in tables["resample"]:
        if subset == circuit:
            continue
        if all(
            _looks_complete(table, subset, circuit)
            and abs(forward.f(universe - subset, ablation)) <= BAND
            and all(
                abs(table[subset - {node}] - forward.f(universe - {node}, ablation)) <= BAND
                for node in subset
            )
            for ablation, table in tables.items()
        ):
            yield tuple(sorted(subset))


def _looks_complete(table: SubsetValues, subset: NodeNames, circuit: NodeNames) -> bool:
    """Return whether a subset meets (a), and (c) for the nodes of C outside of it."""
    return abs(table[subset] - 1) <= BAND and all(
        abs(table[subset | {node}] - table[subset]) <= OUTSIDE_LIMIT for node in circuit - subset
    )


def _draw_sample(outside: Sequence[str], seed: int) -> list[str]:
    count = min(len(outside), MAX_FULL_MODEL_CHECKS)
    return sorted(random.Random(seed).sample(list(outside), count))
