"""Circuits of the same shape that do as well: which of them, or their union, is kept."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.agent.search.mend import STOPPED_BY_BUDGET, OnDecision, find_faults, mend
from discovery.agent.search.rivals import (
    CandidateCircuit,
    assess_candidate,
    choose_among_rivals,
    search_circuit,
)
from discovery.graph import EVIDENCE_ABLATIONS, Control
from discovery.methods.ablation import NodeSet
from discovery.sites import Node, head, mlp
from tests.discovery.agent.search.test_mend import (
    FEW,
    GATES,
    LEVELS,
    UNIVERSE,
    f_from_tables,
    f_under_both_ablations,
    ignore_decision,
    tables,
)
from tests.discovery.evaluation.synthetic import SyntheticFaithfulness

A, X, Y, Z = (head(0, h) for h in range(4))


def slight(kept: NodeSet) -> float:
    """Two bystanders of 0.03 each beside the node that does it: enough to be needed, too little to be missed."""
    return (A in kept) + 0.03 * (X in kept) + 0.03 * (Y in kept)


def f_over_heads(value: Any, budget: int | None = None, heads: int = 4) -> Any:
    return f_under_both_ablations(value, universe=[head(0, h) for h in range(heads)], budget=budget)


def choose_and_record(f: Any, start: NodeSet) -> tuple[NodeSet, list[tuple[Any, str, str]]]:
    """What is kept, and what was said."""
    told: list[tuple[Any, str, str]] = []
    return choose_among_rivals(
        f, start, sorted(f["mean"].everything), 0, lambda *event: told.append(event)
    ), told


ONE, OTHER, UNION = frozenset({A, X}), frozenset({A, Y}), frozenset({A, X, Y})


def controls_by_ablation(as_good: int, n: int) -> Any:
    """A control, and how it is told, under either ablation."""
    return {
        ablation: Control(n=n, n_possible=n, as_good=as_good, p=(1 + as_good) / (1 + n))
        if n
        else None
        for ablation in EVIDENCE_ABLATIONS
    }


def recorded_counts(as_good: int, n: int) -> Any:
    return {ablation: {"as_good": as_good, "n": n} for ablation in EVIDENCE_ABLATIONS}


def test_bystanders_of_one_size_are_taken_together() -> None:
    """A X and A Y are rivals of each other, 1 of 27; of 55 sets of three none is as good as all three."""
    f = f_over_heads(slight, heads=8)
    found = assess_candidate(f, ONE, sorted(f["mean"].everything), 0)
    assert found == CandidateCircuit((0.0, 0), [OTHER], controls_by_ablation(1, 27))
    assert not found.is_better_than_alternatives, "p is 2/28"
    kept, ((measured, concluded, why),) = choose_and_record(f, ONE)
    assert kept == UNION
    assert measured == {
        "a0.h0 a0.h1": recorded_counts(1, 27),
        "a0.h0 a0.h2": recorded_counts(1, 27),
        "a0.h0 a0.h1 a0.h2": recorded_counts(0, 55),
    }
    assert concluded == "change to a0.h0, a0.h1, a0.h2"
    assert "1 layer-matched" in why


@pytest.mark.parametrize("heads", [10, 12, 16])
def test_a_circuit_for_which_condition_e_holds_stays(heads: int) -> None:
    """One rival of 44, 65 or 119 is few enough (p at most 0.05); its union with the rival has none, and is no better for it."""
    f = f_over_heads(slight, heads=heads)
    found = assess_candidate(f, ONE, sorted(f["mean"].everything), 0)
    assert (found.rivals, found.is_better_than_alternatives) == ([OTHER], True)
    assert choose_and_record(f, ONE) == (ONE, [])


def test_a_union_with_too_few_sets_beside_it_is_not_better_for_having_no_rival() -> None:
    """Of four heads three can be chosen otherwise in three ways: that none of them is as good says little."""
    kept, ((measured, concluded, _),) = choose_and_record(f_over_heads(slight), ONE)
    assert measured == {
        "a0.h0 a0.h1": recorded_counts(1, 5),
        "a0.h0 a0.h2": recorded_counts(1, 5),
        "a0.h0 a0.h1 a0.h2": recorded_counts(0, 3),
    }
    assert concluded == "keep the circuit"
    assert kept == ONE


def test_without_bystanders_in_its_way_the_whole_selection_keeps_the_node_that_does_it() -> None:
    assert search_circuit(f_over_heads(slight, heads=8), UNION, [A, X, Y], 0, ignore_decision) == {
        A
    }


@pytest.mark.parametrize(
    ("weight", "as_good", "n", "may"),
    [
        ((0.0, 0), 0, 19, True),
        ((0.0, 0), 0, 18, False),
        ((0.0, 0), 0, 23, True),
        ((0.0, 0), 1, 23, False),
        ((0.0, 0), 1, 39, True),
        ((0.0, 0), 0, 0, False),
        ((0.0, 1), 0, 23, False),
        ((0.1, 0), 0, 23, False),
    ],
)
def test_what_may_replace_a_circuit_with_twenty_sets_beside_it(
    weight: tuple[float, int], as_good: int, n: int, may: bool
) -> None:
    found = CandidateCircuit(weight, [], controls_by_ablation(as_good, n))
    assert found.may_replace(CandidateCircuit((0.0, 0), [ONE], controls_by_ablation(1, 20))) == may
    assert not found.may_replace(CandidateCircuit((0.0, 0), [ONE], controls_by_ablation(1, 44))), (
        "condition (e) holds for this one"
    )


@pytest.mark.parametrize(
    ("weight", "n", "may"),
    [((0.0, 0), 1, True), ((0.0, 1), 5, True), ((0.0, 1), 4, False), ((0.1, 0), 5, False)],
)
def test_fewer_faults_always_may_and_few_sets_may_against_few(
    weight: tuple[float, int], n: int, may: bool
) -> None:
    assert (
        CandidateCircuit(weight, [], controls_by_ablation(0, n)).may_replace(
            CandidateCircuit((0.0, 1), [ONE], controls_by_ablation(1, 5))
        )
        == may
    )


def test_condition_e_has_to_hold_under_both_ablations() -> None:
    good, bad = controls_by_ablation(0, 23)["mean"], controls_by_ablation(1, 23)["mean"]
    circuit, mixed = (
        CandidateCircuit((0.0, 0), [ONE], {"resample": good, "mean": other})
        for other in (bad, good)
    )
    assert (circuit.is_better_than_alternatives, mixed.is_better_than_alternatives) == (False, True)
    assert mixed.may_replace(circuit)
    assert not circuit.may_replace(circuit)


def test_a_rival_that_is_better_replaces_the_circuit() -> None:
    """A bystander where another node belongs."""

    def value(kept: NodeSet) -> float:
        return (A in kept) + 0.15 * (X in kept)

    assert choose_among_rivals(
        f_over_heads(value), frozenset({A, Z}), [A, X, Y, Z], 0, ignore_decision
    ) == {A, X}


def test_without_rivals_nothing_is_said() -> None:
    for name, (value, gate) in GATES.items():
        told: list[Any] = []
        assert (
            choose_among_rivals(
                f_under_both_ablations(value),
                frozenset(gate),
                UNIVERSE,
                0,
                lambda *event, told=told: told.append(event),
            )
            == gate
        ), name
        assert told == []


@pytest.mark.parametrize("name", GATES)
def test_the_whole_selection_finds_the_gate(name: str) -> None:
    value, gate = GATES[name]
    assert (
        search_circuit(
            f_under_both_ablations(value, noise=0.005),
            frozenset(UNIVERSE),
            UNIVERSE,
            0,
            ignore_decision,
        )
        == gate
    )


def test_rivals_are_asked_for_under_either_ablation_the_closest_first() -> None:
    def mean(kept: NodeSet) -> float:
        return (A in kept) + 0.03 * (X in kept) + 0.02 * (Y in kept)

    f = f_under_both_ablations(slight, mean, universe=[A, X, Y, Z])
    assert assess_candidate(f, OTHER, [A, X, Y, Z], 0).rivals == [ONE]
    assert assess_candidate(f, frozenset({A, Z}), [A, X, Y, Z], 0).rivals == [ONE, OTHER]


def test_wherever_the_budget_ends_the_best_so_far_is_kept() -> None:
    """The circuit itself at first, then whatever was found to be better."""
    free = f_over_heads(slight, heads=8)
    choose_and_record(free, ONE)
    most = max(len(f.measured) for f in free.values())
    found = [
        choose_and_record(f_over_heads(slight, budget, heads=8), ONE)[0]
        for budget in range(most + 1)
    ]
    assert found[0] == ONE
    assert found[-1] == UNION
    assert set(found) <= {ONE, UNION}
    changes = sum(one != other for one, other in itertools.pairwise(found))
    assert changes == 1, "once better, always better"


def test_a_budget_that_ends_anywhere_is_said_once_and_only_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a search within the search too, which has no journal of its own."""
    rng, within = random.Random(0), []

    def watched(f: Any, start: NodeSet, say: OnDecision) -> NodeSet:
        def told(measured: dict[str, object], concluded: str, why: str) -> None:
            within.append(concluded == STOPPED_BY_BUDGET)
            say(measured, concluded, why)

        return mend(f, start, told)

    monkeypatch.setattr("discovery.agent.search.rivals.mend", watched)
    for _ in range(100):
        row, start = rng.choices(LEVELS, k=14), frozenset(rng.sample(FEW, rng.randint(1, 3)))
        for budget in range(1, 16):
            f = f_from_tables([row, row], budget)
            _, told = choose_and_record(f, start)
            assert [concluded for _, concluded, _ in told].count(STOPPED_BY_BUDGET) == any(
                part.refused for part in f.values()
            )
    assert any(within), "some ended in the middle of mending"


@settings(deadline=None, max_examples=100)
@given(
    rows=st.lists(tables, min_size=2, max_size=2),
    start=st.sets(st.sampled_from(FEW), min_size=1),
    budget=st.none() | st.integers(0, 16),
)
def test_it_ends_on_any_function_and_never_with_more_faults(
    rows: Any, start: set[Node], budget: int | None
) -> None:
    circuit = frozenset(start)
    found = choose_among_rivals(f_from_tables(rows, budget), circuit, FEW, 0, ignore_decision)
    free = f_from_tables(rows)
    assert find_faults(free, found).severity <= find_faults(free, circuit).severity
    assert search_circuit(
        f_from_tables(rows, budget), circuit, FEW, 0, ignore_decision
    ) <= frozenset(FEW)


def test_layers_without_another_node_have_no_rivals() -> None:
    alone = [head(0, 0), mlp(0), head(1, 0)]
    f = {"resample": SyntheticFaithfulness(alone, lambda kept: len(kept) / 3)}
    assert assess_candidate(f, frozenset(alone[:2]), alone, 0).rivals == []
