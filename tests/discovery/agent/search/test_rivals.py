"""Circuits of the same shape that do as well: which of them, or their union, is kept."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.agent.search.decision import Decision, OnDecision, ignore_decision
from discovery.agent.search.mend import Mending
from discovery.agent.search.rivals import CandidateCircuit, RivalSearch
from discovery.agent.search.shrink import examine_all
from discovery.errors import BudgetError
from discovery.graph import EVIDENCE_ABLATIONS, Control
from discovery.methods.ablation import NodeSet
from discovery.sites import Node, head, mlp
from tests.discovery.agent.search.set_functions import (
    FEW,
    GATES,
    LEVELS,
    f_from_tables,
    f_over_heads,
    f_under_both_ablations,
    tables,
    with_bystanders,
)
from tests.discovery.evaluation.synthetic import SyntheticFaithfulness

A, X, Y, Z = (head(0, h) for h in range(4))

slight = with_bystanders(0.03, 0.03)


def choose_and_record(f: Any, start: NodeSet) -> tuple[NodeSet, list[Decision]]:
    """Return the circuit that is kept, and the decisions on the way."""
    decisions: list[Decision] = []
    return make_rival_search(f, decisions.append).choose(start), decisions


def make_rival_search(f: Any, on_decision: OnDecision = ignore_decision) -> RivalSearch:
    ranking = sorted(f["resample"].everything)
    return RivalSearch(Mending(f, ranking, 0, on_decision), f, ranking)


def make_candidate(severity: tuple[float, int], rivals: Any, controls: Any) -> CandidateCircuit:
    """Return a candidate with faults by the conditions themselves, and none by the margins."""
    return CandidateCircuit(order=(*severity, 0.0), rivals=rivals, controls=controls)


ONE = frozenset({A, X})
OTHER = frozenset({A, Y})
UNION = frozenset({A, X, Y})


def controls_by_ablation(as_good: int, n: int) -> Any:
    """Return the same control under either ablation; None if there is nothing to compare with."""
    p = (1 + as_good) / (1 + n)
    control = Control(n=n, n_possible=n, as_good=as_good, p=p) if n else None
    return dict.fromkeys(EVIDENCE_ABLATIONS, control)


def recorded_counts(as_good: int, n: int) -> Any:
    """Return how the decision shows that control."""
    return {ablation: {"as_good": as_good, "n": n} for ablation in EVIDENCE_ABLATIONS}


def test_bystanders_of_one_size_are_taken_together() -> None:
    """{A, X} has one rival of 27, {A, Y}. Of 55 sets of three, none is as good as all three."""
    f = f_over_heads(slight, heads=8)
    candidate = make_rival_search(f).assess(ONE)
    assert candidate == make_candidate((0.0, 0), [OTHER], controls_by_ablation(1, 27))
    assert not candidate.is_better_than_alternatives, "p is 2/28"
    circuit, (decision,) = choose_and_record(f, ONE)
    assert circuit == UNION
    assert decision.measured == {
        "a0.h0 a0.h1": recorded_counts(1, 27),
        "a0.h0 a0.h2": recorded_counts(1, 27),
        "a0.h0 a0.h1 a0.h2": recorded_counts(0, 55),
    }
    assert decision.concluded == "change to a0.h0, a0.h1, a0.h2"
    assert "1 layer-matched" in decision.why


@pytest.mark.parametrize("heads", [10, 12, 16])
def test_a_circuit_for_which_condition_e_holds_stays(heads: int) -> None:
    """One rival of 44, 65 or 119 is few enough (p at most 0.05).

    The union with the rival has no rival itself, which makes it no better.
    """
    f = f_over_heads(slight, heads=heads)
    candidate = make_rival_search(f).assess(ONE)
    assert (candidate.rivals, candidate.is_better_than_alternatives) == ([OTHER], True)
    assert choose_and_record(f, ONE) == (ONE, [])


def test_a_union_with_too_few_sets_beside_it_is_not_better_for_having_no_rival() -> None:
    """There are only three other ways to choose three of four heads, so it says little."""
    circuit, (decision,) = choose_and_record(f_over_heads(slight), ONE)
    assert decision.measured == {
        "a0.h0 a0.h1": recorded_counts(1, 5),
        "a0.h0 a0.h2": recorded_counts(1, 5),
        "a0.h0 a0.h1 a0.h2": recorded_counts(0, 3),
    }
    assert decision.concluded == "keep the circuit"
    assert circuit == ONE


@pytest.mark.parametrize(
    ("severity", "as_good", "n", "may"),
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
    severity: tuple[float, int], as_good: int, n: int, may: bool
) -> None:
    candidate = make_candidate(severity, [], controls_by_ablation(as_good, n))
    circuit = make_candidate((0.0, 0), [ONE], controls_by_ablation(1, 20))
    assert candidate.may_replace(circuit) == may
    better_circuit = make_candidate((0.0, 0), [ONE], controls_by_ablation(1, 44))
    assert not candidate.may_replace(better_circuit), "condition (e) holds for this one"


@pytest.mark.parametrize(
    ("severity", "n", "may"),
    [((0.0, 0), 1, True), ((0.0, 1), 5, True), ((0.0, 1), 4, False), ((0.1, 0), 5, False)],
)
def test_fewer_faults_always_may_and_few_sets_may_against_few(
    severity: tuple[float, int], n: int, may: bool
) -> None:
    candidate = make_candidate(severity, [], controls_by_ablation(0, n))
    circuit = make_candidate((0.0, 1), [ONE], controls_by_ablation(1, 5))
    assert candidate.may_replace(circuit) == may


def test_condition_e_has_to_hold_under_both_ablations() -> None:
    good = controls_by_ablation(0, 23)["mean"]
    bad = controls_by_ablation(1, 23)["mean"]
    circuit = make_candidate((0.0, 0), [ONE], {"resample": good, "mean": bad})
    better = make_candidate((0.0, 0), [ONE], {"resample": good, "mean": good})
    assert not circuit.is_better_than_alternatives
    assert better.is_better_than_alternatives
    assert better.may_replace(circuit)
    assert not circuit.may_replace(circuit)


def test_a_rival_that_is_better_replaces_the_circuit() -> None:
    """The circuit has a bystander instead of a node that matters."""

    def value(kept: NodeSet) -> float:
        return (A in kept) + 0.15 * (X in kept)

    assert choose_and_record(f_over_heads(value), frozenset({A, Z}))[0] == {A, X}


def test_without_rivals_there_is_no_decision() -> None:
    for name, (value, gate) in GATES.items():
        circuit, decisions = choose_and_record(f_under_both_ablations(value), frozenset(gate))
        assert circuit == gate, name
        assert decisions == []


def test_rivals_are_asked_for_under_either_ablation_the_closest_first() -> None:
    def mean(kept: NodeSet) -> float:
        return (A in kept) + 0.03 * (X in kept) + 0.02 * (Y in kept)

    f = f_under_both_ablations(slight, mean, universe=[A, X, Y, Z])
    assert make_rival_search(f).assess(OTHER).rivals == [ONE]
    assert make_rival_search(f).assess(frozenset({A, Z})).rivals == [ONE, OTHER]


def test_wherever_the_budget_ends_the_best_so_far_is_kept() -> None:
    """With a small budget that is the circuit itself, with a larger one the better set."""
    free = f_over_heads(slight, heads=8)
    choose_and_record(free, ONE)
    enough = max(len(f.measured) for f in free.values())
    circuits = [
        choose_and_record(f_over_heads(slight, budget, heads=8), ONE)[0]
        for budget in range(enough + 1)
    ]
    assert circuits[0] == ONE
    assert circuits[-1] == UNION
    assert set(circuits) <= {ONE, UNION}
    changes = sum(before != after for before, after in itertools.pairwise(circuits))
    assert changes == 1, "once better, always better"


def test_the_end_of_the_budget_is_reported_once_and_only_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also if it ends within the mending of a rival, which has no journal of its own."""
    rng = random.Random(0)
    stopped_in_mending = []
    run_silently = Mending.run_silently

    def run_and_watch(mending: Mending, start: NodeSet) -> NodeSet:
        try:
            return run_silently(mending, start)
        except BudgetError:
            stopped_in_mending.append(start)
            raise

    monkeypatch.setattr(Mending, "run_silently", run_and_watch)
    for _ in range(100):
        row = rng.choices(LEVELS, k=14)
        start = frozenset(rng.sample(FEW, rng.randint(1, 3)))
        for budget in range(1, 16):
            f = f_from_tables([row, row], budget)
            _, decisions = choose_and_record(f, start)
            stops = [decision.stopped for decision in decisions].count("budget")
            assert stops == any(part.refused for part in f.values())
    assert stopped_in_mending, "some ended in the middle of mending"


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
    best, _ = choose_and_record(f_from_tables(rows, budget), circuit)
    free = make_rival_search(f_from_tables(rows)).mending
    assert examine_all(free, best).order <= examine_all(free, circuit).order


def test_layers_without_another_node_have_no_rivals() -> None:
    alone = [head(0, 0), mlp(0), head(1, 0)]
    f = {"resample": SyntheticFaithfulness(alone, lambda kept: len(kept) / 3)}
    assert make_rival_search(f).assess(frozenset(alone[:2])).rivals == []
