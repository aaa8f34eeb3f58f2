"""Functions of a set of nodes that stand for f, with a known circuit or with any values at all."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from discovery.methods.ablation import NodeSet
from discovery.sites import Node, head, mlp
from tests.discovery.evaluation.synthetic import SyntheticFaithfulness

UNIVERSE = [head(0, 0), head(0, 1), mlp(0), head(1, 0), head(1, 1), mlp(1), head(2, 0), mlp(2)]
A, B, M, C, D, E, G, H = UNIVERSE
Value = Callable[[NodeSet], float]


def f_under_both_ablations(
    value: Value,
    value_under_mean: Value | None = None,
    *,
    universe: Any = UNIVERSE,
    noise: float = 0.0,
    budget: int | None = None,
) -> Any:
    """Return f under each ablation: the value, scaled so that f(U) = 1 and f(∅) = 0.

    With noise, every node of the set adds a small random number to the value before the scaling.
    """

    def scale(function: Value, seed: int) -> SyntheticFaithfulness:
        rng = random.Random(seed)
        noise_of = {node: rng.uniform(-noise, noise) for node in sorted(universe)}

        def noisy(kept: NodeSet) -> float:
            return function(kept) + sum(noise_of[node] for node in kept)

        empty = noisy(frozenset())
        full = noisy(frozenset(universe))
        return SyntheticFaithfulness(
            universe, lambda kept: (noisy(kept) - empty) / (full - empty), budget=budget
        )

    return {"resample": scale(value, 1), "mean": scale(value_under_mean or value, 2)}


def f_over_heads(value: Value, budget: int | None = None, heads: int = 4) -> Any:
    """Return f under each ablation over the heads of one layer."""
    return f_under_both_ablations(value, universe=[head(0, h) for h in range(heads)], budget=budget)


def with_bystanders(first: float, second: float) -> Value:
    """Return the value of the head a0.h0 with two bystanders that add a little.

    Each bystander is needed by (d), and the circuit meets every condition without both.
    """
    main, *bystanders = (head(0, h) for h in range(3))

    def value(kept: NodeSet) -> float:
        return (main in kept) + first * (bystanders[0] in kept) + second * (bystanders[1] in kept)

    return value


def and_gate(kept: NodeSet) -> float:
    return float({A, E} <= kept)


def or_gate(kept: NodeSet) -> float:
    """An OR of two heads into an MLP."""
    return float(M in kept and bool({A, B} & kept))


def backup(kept: NodeSet) -> float:
    """G does 0.9 of the work of C when C is ablated."""
    return float(A in kept) * (1.0 if C in kept else 0.9 * (G in kept))


def stand_in_pair(kept: NodeSet) -> float:
    """Two nodes do the work of A, but only together."""
    return float(E in kept and (A in kept or {B, D} <= kept))


def twins(kept: NodeSet) -> float:
    """Two nodes with opposite effects of the same size."""
    return float(A in kept) * (1.0 + 0.4 * (C in kept) - 0.4 * (D in kept))


def opposing(kept: NodeSet) -> float:
    """One node lowers what another does."""
    return float(A in kept) * (1.0 - 0.3 * (H in kept))


def chain(kept: NodeSet) -> float:
    """Five nodes that are all needed."""
    return float({A, M, C, E, G} <= kept)


GATES: dict[str, tuple[Value, set[Node]]] = {
    "and": (and_gate, {A, E}),
    "or": (or_gate, {A, B, M}),
    "backup": (backup, {A, C, G}),
    "stand-in pair": (stand_in_pair, {A, B, D, E}),
    "twins": (twins, {A, C, D}),
    "opposing": (opposing, {A, H}),
    "chain": (chain, {A, M, C, E, G}),
}

FEW = [head(0, 0), head(0, 1), head(1, 0), mlp(1)]

# No two levels differ by a bound of the conditions, so that rounding decides nothing.
LEVELS = [-1.0, -0.31, 0.0, 0.013, 0.157, 0.52, 0.853, 0.91, 0.973, 1.0, 1.057, 1.33, 3.0]
tables = st.lists(st.sampled_from(LEVELS), min_size=14, max_size=14)


def f_from_tables(rows: list[list[float]], budget: int | None = None) -> Any:
    """Return f over FEW from a table for each ablation: f(∅) = 0, f(U) = 1, any value between."""

    def look_up(row: list[float]) -> SyntheticFaithfulness:
        values = [0.0, *row, 1.0]
        return SyntheticFaithfulness(
            FEW, lambda kept: values[sum(1 << FEW.index(node) for node in kept)], budget=budget
        )

    return {"resample": look_up(rows[0]), "mean": look_up(rows[1])}
