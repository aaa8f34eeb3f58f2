"""Shrinking: the smallest of the sets that meet (a) to (d), on functions of known circuits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.agent.search import shrink as module
from discovery.agent.search.decision import Decision
from discovery.agent.search.fit import measure_fits, total_excess
from discovery.agent.search.mend import find_faults
from discovery.agent.search.shrink import shrink
from discovery.sites import Node, head
from tests.discovery.agent.search.set_functions import (
    FEW,
    GATES,
    f_from_tables,
    f_over_heads,
    f_under_both_ablations,
    ignore_decision,
    tables,
    with_bystanders,
)

A, X, Y = (head(0, h) for h in range(3))
slight = with_bystanders(0.04, 0.03)


def test_what_no_condition_asks_for_is_left_out_the_least_first() -> None:
    f = f_over_heads(slight)
    assert find_faults(f, frozenset({A, X, Y})).severity == (0.0, 0), "each is needed by (d)"
    decisions: list[Decision] = []
    assert shrink(f, frozenset({A, X, Y}), decisions.append) == {A}
    assert decisions == [
        Decision(
            {"nodes": 1},
            "leave out a0.h1, a0.h2",
            "what is left has no more faults by (a) to (d)",
        )
    ]


def test_more_than_one_way_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropping the node with the least effect first ends with three nodes, another way with two."""
    row = [0.013, 0.013, 1.0, 1.0, 0.973, 0.853, 0.973]
    row += [1.057, 0.157, 0.157, 0.013, 0.973, 0.91, 0.973]
    first, second, third, fourth = FEW
    assert shrink(f_from_tables([row, row]), frozenset(FEW), ignore_decision) == {first, third}
    monkeypatch.setattr(module, "BEAM_WIDTH", 1)
    assert shrink(f_from_tables([row, row]), frozenset(FEW), ignore_decision) == {
        second,
        third,
        fourth,
    }


@pytest.mark.parametrize("name", GATES)
def test_a_gate_is_left_whole(name: str) -> None:
    value, gate = GATES[name]
    decisions: list[Decision] = []
    assert shrink(f_under_both_ablations(value), frozenset(gate), decisions.append) == gate
    assert decisions == []


def test_one_node_is_never_left_out() -> None:
    assert shrink(f_over_heads(slight), frozenset({A}), ignore_decision) == {A}
    assert shrink(f_over_heads(slight), frozenset(), ignore_decision) == frozenset()


def test_nodes_that_were_dropped_before_the_budget_ended_stay_out() -> None:
    whole = frozenset({A, X, Y})
    ends = set()
    for budget in range(60):
        decisions: list[Decision] = []
        circuit = shrink(f_over_heads(slight, budget), whole, decisions.append)
        assert A in circuit
        ends.add((len(circuit), any(decision.stopped == "budget" for decision in decisions)))
    assert {(3, True), (1, False)} <= ends


@settings(deadline=None, max_examples=150)
@given(
    rows=st.lists(tables, min_size=2, max_size=2), start=st.sets(st.sampled_from(FEW), min_size=1)
)
def test_never_worse_and_no_single_node_more_can_go(rows: Any, start: set[Node]) -> None:
    f = f_from_tables(rows)
    circuit = frozenset(start)
    allowed = find_faults(f, circuit).severity
    smallest = shrink(f, circuit, ignore_decision)
    assert smallest <= circuit
    assert find_faults(f, smallest).severity <= allowed
    if len(smallest) > 1:
        for node in smallest:
            rest = smallest - {node}
            assert (
                total_excess(measure_fits(f, [rest])[0]) > 0
                or find_faults(f, rest).severity > allowed
            )
