"""The search on functions of the set whose circuit is known, and on adversarial ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.known_circuits.subset_conditions import ConditionsBySubset
from discovery.agent.search import mend as module
from discovery.agent.search.mend import (
    MAX_EXAMINED_SETS,
    STOPPED_BY_BUDGET,
    STOPPED_BY_LIMIT,
    Faults,
    find_faults,
    mend,
)
from discovery.evaluation import find_contexts
from discovery.evaluation.minimality import find_largest_drops
from discovery.evaluation.thresholds import MIN_DROP
from discovery.methods.ablation import NodeSet
from discovery.sites import Node, head, mlp
from tests.discovery.evaluation.synthetic import SyntheticFaithfulness, subsets

UNIVERSE = [head(0, 0), head(0, 1), mlp(0), head(1, 0), head(1, 1), mlp(1), head(2, 0), mlp(2)]
A, B, M, C, D, E, G, H = UNIVERSE
Value = Callable[[NodeSet], float]


def ignore_decision(measured: dict[str, object], concluded: str, why: str) -> None:
    """For searches whose journal nobody reads."""


def f_under_both_ablations(
    value: Value,
    other: Value | None = None,
    *,
    universe: Any = UNIVERSE,
    noise: float = 0.0,
    budget: int | None = None,
) -> Any:
    """f under each ablation: the value plus a little of every node, scaled so that f(U) = 1 and f(∅) = 0."""

    def made(function: Value, seed: int) -> SyntheticFaithfulness:
        rng = random.Random(seed)
        little = {node: rng.uniform(-noise, noise) for node in sorted(universe)}

        def noisy(kept: NodeSet) -> float:
            return function(kept) + sum(little[node] for node in kept)

        empty, full = noisy(frozenset()), noisy(frozenset(universe))
        return SyntheticFaithfulness(
            universe, lambda kept: (noisy(kept) - empty) / (full - empty), budget=budget
        )

    return {"resample": made(value, 1), "mean": made(other or value, 2)}


def and_gate(kept: NodeSet) -> float:
    return float({A, E} <= kept)


def or_gate(kept: NodeSet) -> float:
    """An OR of two heads into an MLP."""
    return float(M in kept and bool({A, B} & kept))


def backup(kept: NodeSet) -> float:
    """D at 0.9 once C is out."""
    return float(A in kept) * (1.0 if C in kept else 0.9 * (G in kept))


def stand_in_pair(kept: NodeSet) -> float:
    """Only two nodes together stand in for A."""
    return float(E in kept and (A in kept or {B, D} <= kept))


def twins(kept: NodeSet) -> float:
    return float(A in kept) * (1.0 + 0.4 * (C in kept) - 0.4 * (D in kept))


def opposing(kept: NodeSet) -> float:
    return float(A in kept) * (1.0 - 0.3 * (H in kept))


def chain(kept: NodeSet) -> float:
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


@pytest.mark.parametrize("noise", [0.0, 0.008])
@pytest.mark.parametrize(
    "start", ["everything", "the first that is faithful", "nothing", "the gate and two bystanders"]
)
@pytest.mark.parametrize("name", GATES)
def test_a_gate_is_found(name: str, start: str, noise: float) -> None:
    """From wherever the search begins; a little of everything beside it misleads nobody.

    Only a gate of five is out of reach from nothing: no single step towards it changes f. (A search begins with a set that works.)
    """
    if (name, start, noise) == ("chain", "nothing", 0.0):
        start = "the first that is faithful"
    value, gate = GATES[name]
    f = f_under_both_ablations(value, noise=noise)
    bystanders = [node for node in UNIVERSE if node not in gate][:2]
    starts = {
        "everything": frozenset(UNIVERSE),
        "the first that is faithful": next(s for s in subsets(UNIVERSE) if s and value(s) >= 0.9),
        "nothing": frozenset[Node](),
        "the gate and two bystanders": frozenset(gate | set(bystanders)),
    }
    told: list[tuple[str, str]] = []
    found = mend(f, starts[start], lambda measured, concluded, why: told.append((concluded, why)))
    assert found == gate, told
    assert find_faults(f, found).severity == (0.0, 0)
    assert all(concluded and why for concluded, why in told)
    assert len(told) <= MAX_EXAMINED_SETS + 1, "and that it goes back"


def test_a_search_that_does_not_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And announces nothing that it does not do."""
    value, gate = GATES["chain"]
    told: list[str] = []
    monkeypatch.setattr(module, "MAX_EXAMINED_SETS", 1)
    assert mend(
        f_under_both_ablations(value),
        frozenset(UNIVERSE),
        lambda measured, concluded, why: told.append(concluded),
    ) == frozenset(UNIVERSE)
    assert told == [STOPPED_BY_LIMIT]
    monkeypatch.undo()
    assert (
        mend(
            f_under_both_ablations(value),
            frozenset(UNIVERSE),
            lambda measured, concluded, why: told.append(concluded),
        )
        == gate
    )
    assert told.count(STOPPED_BY_LIMIT) == 1


def test_a_node_that_matters_under_one_ablation_only_is_dropped_where_the_other_does_without() -> (
    None
):
    """(d) must hold under both: B moves f under mean alone, within what (a) to (c) allow."""
    f = f_under_both_ablations(and_gate, lambda kept: and_gate(kept) + 0.05 * (B in kept))
    assert mend(f, frozenset({A, B, E}), ignore_decision) == {A, E}


def test_what_it_says_names_the_node_and_the_number() -> None:
    told: list[tuple[dict[str, object], str, str]] = []
    mend(f_under_both_ablations(or_gate), frozenset({A, M}), lambda *event: told.append(event))
    assert told[0][1] == "add a0.h1"
    assert told[0][0] == {"gap": pytest.approx(1.0), "with": pytest.approx(0.0), "behind": "a0.h0"}
    assert "without a0.h0 the model still works" in told[0][2]
    told.clear()
    mend(f_under_both_ablations(and_gate), frozenset({A, E, G}), lambda *event: told.append(event))
    assert told[0][0] == {"a2.h0": pytest.approx(0.0)}
    assert told[0][1] == "drop a2.h0"


FEW = [head(0, 0), head(0, 1), head(1, 0), mlp(1)]
LEVELS = [
    -1.0,
    -0.31,
    0.0,
    0.013,
    0.157,
    0.52,
    0.853,
    0.91,
    0.973,
    1.0,
    1.057,
    1.33,
    3.0,
]  # no two apart by just a bound
tables = st.lists(st.sampled_from(LEVELS), min_size=14, max_size=14)


def f_from_tables(rows: list[list[float]], budget: int | None = None) -> Any:
    """f(∅) = 0, f(U) = 1, anything in between."""

    def made(row: list[float]) -> SyntheticFaithfulness:
        full = [0.0, *row, 1.0]
        return SyntheticFaithfulness(
            FEW, lambda kept: full[sum(1 << FEW.index(node) for node in kept)], budget=budget
        )

    return {"resample": made(rows[0]), "mean": made(rows[1])}


@settings(deadline=None, max_examples=150)
@given(rows=st.lists(tables, min_size=2, max_size=2))
def test_faults_are_what_the_conditions_hold_against_a_set(rows: list[list[float]]) -> None:
    """Nothing is wrong exactly where all of (a) to (d) hold under both, by the tests' own reading of them."""
    f = f_from_tables(rows)
    names = [str(node) for node in FEW]
    judges = [ConditionsBySubset(names, [0.0, *row, 1.0]) for row in rows]
    for made in subsets(FEW):
        mask = sum(1 << FEW.index(node) for node in made)
        faults = find_faults(f, made)
        assert (faults.excess == 0) == all(judge.is_sufficient(mask) for judge in judges)
        assert (faults.incompleteness < 5e-7) == all(judge.is_complete(mask) for judge in judges)
        if faults.severity[0] == 0:
            drops = [find_contexts(one, made) for one in f.values()]
            assert set(faults.unneeded_nodes) == {
                v for v in made if min(found[v][1] for found in drops) < MIN_DROP
            }
            if all(judge.is_minimal(mask) for judge in judges):
                assert faults.severity == (0.0, 0)


@settings(deadline=None, max_examples=150)
@given(rows=st.lists(tables, min_size=2, max_size=2))
def test_looking_no_further_than_needed_judges_alike(rows: list[list[float]]) -> None:
    """`needed` and `contexts` agree on who is needed, and `needed` never says more."""
    for f in f_from_tables(rows).values():
        for made in subsets(FEW):
            short, whole = find_largest_drops(f, made), find_contexts(f, made)
            assert {v: drop >= MIN_DROP for v, drop in short.items()} == {
                v: drop >= MIN_DROP for v, (_, drop) in whole.items()
            }
            assert all(short[v] <= whole[v][1] + 1e-9 for v in made)


class ExaminedSets:
    """Which sets the search examined, and what it held against them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: dict[NodeSet, Faults] = {}

        def examined(both: Any, circuit: NodeSet) -> Faults:
            found = find_faults(both, circuit)
            self.seen[circuit] = found
            return found

        monkeypatch.setattr(module, "find_faults", examined)


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(tables, min_size=2, max_size=2),
    start=st.sets(st.sampled_from(FEW)),
    budget=st.none() | st.integers(0, 16),
)
def test_it_ends_with_the_best_it_saw(
    rows: Any, start: set[Node], budget: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On any function at all, and wherever the budget ends; a smaller set among equals."""
    with monkeypatch.context() as patch:
        watched = ExaminedSets(patch)
        told: list[str] = []
        found = mend(
            f_from_tables(rows, budget),
            frozenset(start),
            lambda measured, concluded, why: told.append(concluded),
        )
    assert len(watched.seen) <= MAX_EXAMINED_SETS
    assert told.count(STOPPED_BY_BUDGET) <= 1
    last = list(watched.seen)[-1:]
    assert sum(concluded.startswith("go back") for concluded in told) == (last not in ([], [found]))
    if STOPPED_BY_BUDGET in told:
        assert STOPPED_BY_BUDGET in told[-2:]
        assert budget is not None
    if not watched.seen:
        assert found == start
        return
    best = min(watched.seen, key=lambda made: (watched.seen[made].severity, len(made)))
    assert (watched.seen[found].severity, len(found)) == (watched.seen[best].severity, len(best))


def test_wherever_the_budget_ends_a_gate_only_gets_better() -> None:
    """From nothing to unlimited: never worse than with less, and in the end the gate."""
    value, gate = GATES["stand-in pair"]
    free = f_under_both_ablations(value)
    start = frozenset({A, E, G})
    mend(free, start, ignore_decision)
    most = max(len(f.measured) for f in free.values())
    weights = []
    for budget in range(0, most + 1, 3):
        weights.append(
            find_faults(
                f_under_both_ablations(value),
                mend(f_under_both_ablations(value, budget=budget), start, ignore_decision),
            ).severity
        )
    assert weights == sorted(weights, reverse=True)
    assert mend(f_under_both_ablations(value, budget=most), start, ignore_decision) == gate


@pytest.mark.parametrize("size", [0, 1])
def test_a_universe_of_hardly_anything(size: int) -> None:
    universe = UNIVERSE[:size]
    f = {"resample": SyntheticFaithfulness(universe, lambda kept: float(len(kept)))}
    assert mend(f, frozenset(universe), ignore_decision) == frozenset(universe)
