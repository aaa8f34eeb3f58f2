"""Which models the benchmark has: kinds, sizes and seeds.

Development seeds may be looked at while the search is written. Report seeds are run only for a
report. The two never share a seed, and the sizes never share a program.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch

from benchmarks.known_circuits.known_circuit import KnownCircuit
from benchmarks.scale.constructions import KINDS, Kind
from benchmarks.scale.embedding import HiddenCircuit, hide_circuit

SeedSet = Literal["dev", "report"]
SEED_SETS: tuple[SeedSet, ...] = get_args(SeedSet)
CaseKind = Literal[Kind, "untrained"]
UNTRAINED: CaseKind = "untrained"
CASE_KINDS: tuple[CaseKind, ...] = (*KINDS, UNTRAINED)
# How many cases of a kind there are at each number of nodes. The two small sizes only serve to show
# how the cost grows.
N_CASES: Mapping[int, int] = {20: 4, 40: 4, 156: 20, 300: 6, 1056: 2}
LARGE_SIZES = (156, 300, 1056)
FIRST_SEED: Mapping[SeedSet, int] = {"dev": 0, "report": 60}


@dataclass(frozen=True, kw_only=True)
class CaseKey:
    """What identifies a case. `seed` is a seed of `hide_circuit`."""

    kind: CaseKind
    n_nodes: int
    seed: int

    def __str__(self) -> str:
        return f"{self.kind} among {self.n_nodes} nodes, seed {self.seed}"

    @property
    def seed_set(self) -> SeedSet:
        """The set that the seed belongs to."""
        return "dev" if self.seed < FIRST_SEED["report"] else "report"

    def build(self) -> HiddenCircuit:
        """Build the model. An untrained twin has an empty truth."""
        if self.kind == "untrained":
            kind = KINDS[self.seed % (len(KINDS) - 1)]
            case = hide_circuit(kind, self.n_nodes, self.seed)
            twin = make_untrained_twin(case.known_circuit, self.seed)
            return replace(case, known_circuit=twin, truth=frozenset())
        return hide_circuit(self.kind, self.n_nodes, self.seed)


def list_cases(
    seed_set: SeedSet,
    kinds: Collection[CaseKind] = CASE_KINDS,
    sizes: Collection[int] = LARGE_SIZES,
    limit: int | None = None,
) -> Iterator[CaseKey]:
    """Yield the cases, small models first, one of each kind before the second of any.

    Args:
        seed_set: whether development or report seeds are used.
        kinds: the kinds.
        sizes: the numbers of nodes.
        limit: the largest number of cases of a kind and size.
    """
    for n_nodes in sorted(sizes):
        before = sum(count for size, count in N_CASES.items() if size < n_nodes)
        count = N_CASES[n_nodes] if limit is None else min(limit, N_CASES[n_nodes])
        for number in range(count):
            seed = FIRST_SEED[seed_set] + before + number
            for kind in CASE_KINDS:
                if kind in kinds:
                    yield CaseKey(kind=kind, n_nodes=n_nodes, seed=seed)


def make_untrained_twin(circuit: KnownCircuit, seed: int) -> KnownCircuit:
    """Return a model of the same shape and task with untrained weights.

    What heads and MLPs write is divided by the square root of the number of nodes. Otherwise the
    residual stream, which no norm bounds, would grow with each of the 32 layers.
    """
    twin = circuit.random_twin(seed)
    scale = float(np.sqrt(len(circuit.universe)))
    state = {
        name: weight / scale if name.endswith(("W_O", "W_out")) else weight
        for name, weight in twin.state.items()
    }
    assert all(torch.isfinite(weight).all() for weight in state.values())
    return replace(twin, state=state)
