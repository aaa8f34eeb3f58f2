"""The whole search after the curve: descend, mend, shrink, and compare with rivals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.known_circuits.subset_conditions import ConditionsBySubset
from discovery.agent.search.decision import Decision, ignore_decision
from discovery.agent.search.search_circuit import search_circuit
from discovery.methods.ablation import NodeSet
from discovery.sites import Node, head
from tests.discovery.agent.search.set_functions import (
    FEW,
    GATES,
    UNIVERSE,
    A,
    E,
    G,
    f_from_tables,
    f_over_heads,
    f_under_both_ablations,
    tables,
    with_bystanders,
)
from tests.discovery.evaluation.synthetic import subsets


def test_bystanders_are_left_out_and_the_node_that_does_the_work_is_kept() -> None:
    main, first, second = (head(0, h) for h in range(3))
    f = f_over_heads(with_bystanders(0.03, 0.03), heads=8)
    ranking = [main, first, second]
    outcome = search_circuit(f, frozenset(ranking), ranking, 0, ignore_decision, f)
    assert outcome.circuit == {main}
    assert set(outcome.drop_shares) == {main}
    assert outcome.drop_shares[main] >= 1.25


@pytest.mark.parametrize("noise", [0.0, 0.008])
@pytest.mark.parametrize(
    "start", ["everything", "the first that is faithful", "one node", "the gate and two bystanders"]
)
@pytest.mark.parametrize("name", GATES)
def test_a_gate_is_found(name: str, start: str, noise: float) -> None:
    """Wherever the search begins, and with a little noise from every node.

    Only a gate of five cannot be reached from a single node, because no single step towards it
    changes f. A real search begins with a set that works.
    """
    if (name, start) == ("chain", "one node"):
        start = "the first that is faithful"
    value, gate = GATES[name]
    f = f_under_both_ablations(value, noise=noise)
    bystanders = [node for node in UNIVERSE if node not in gate][:2]
    starts = {
        "everything": frozenset(UNIVERSE),
        "the first that is faithful": next(s for s in subsets(UNIVERSE) if s and value(s) >= 0.9),
        "one node": frozenset({UNIVERSE[-1]}),
        "the gate and two bystanders": frozenset(gate | set(bystanders)),
    }
    decisions: list[Decision] = []
    outcome = search_circuit(f, starts[start], UNIVERSE, 0, decisions.append, f)
    assert outcome.circuit == gate, decisions
    assert all(decision.concluded and decision.why for decision in decisions)
    assert set(outcome.drop_shares) == gate
    assert min(outcome.drop_shares.values()) >= 1


def test_wherever_the_budget_ends_a_set_comes_back_and_the_end_is_told_once() -> None:
    value, gate = GATES["stand-in pair"]
    free = f_under_both_ablations(value)
    start = frozenset({A, E, G})
    assert search_circuit(free, start, UNIVERSE, 0, ignore_decision, free).circuit == gate
    enough = max(len(f.measured) for f in free.values())
    for budget in range(0, enough + 1, 3):
        decisions: list[Decision] = []
        f = f_under_both_ablations(value, budget=budget)
        circuit = search_circuit(f, start, UNIVERSE, 0, decisions.append, f).circuit
        stops = [decision.stopped for decision in decisions].count("budget")
        assert stops == (1 if any(part.refused for part in f.values()) else 0)
        assert circuit <= frozenset(UNIVERSE)
        assert circuit


@settings(deadline=None, max_examples=100)
@given(
    rows=st.lists(tables, min_size=2, max_size=2),
    start=st.sets(st.sampled_from(FEW), min_size=1),
)
def test_it_ends_with_no_more_faults_than_it_began_with(rows: Any, start: set[Node]) -> None:
    """By an independent check: if the start meets (a) to (c), the end does too."""
    f = f_from_tables(rows)
    circuit = search_circuit(f, frozenset(start), FEW, 0, ignore_decision, f).circuit
    names = [str(node) for node in FEW]
    judges = [ConditionsBySubset(names, [0.0, *row, 1.0]) for row in rows]

    def passes(nodes: NodeSet) -> bool:
        mask = sum(1 << FEW.index(node) for node in nodes)
        return all(judge.is_sufficient(mask) and judge.is_complete(mask) for judge in judges)

    assert passes(circuit) or not passes(frozenset(start))


@settings(deadline=None, max_examples=100)
@given(
    rows=st.lists(tables, min_size=2, max_size=2),
    start=st.sets(st.sampled_from(FEW), min_size=1),
    budget=st.none() | st.integers(0, 16),
)
def test_it_ends_on_any_function_and_wherever_the_budget_ends(
    rows: Any, start: set[Node], budget: int | None
) -> None:
    f = f_from_tables(rows, budget)
    outcome = search_circuit(f, frozenset(start), FEW, 0, ignore_decision, f)
    assert outcome.circuit <= frozenset(FEW)
    assert set(outcome.drop_shares) <= outcome.circuit
