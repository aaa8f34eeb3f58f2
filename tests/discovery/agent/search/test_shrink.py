"""The smallest of the sets that meet (a) to (d), on functions whose circuits are known."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.agent.search import shrink as module
from discovery.agent.search.fit import measure_fits, total_excess
from discovery.agent.search.mend import STOPPED_BY_BUDGET, find_faults
from discovery.agent.search.shrink import shrink
from discovery.methods.ablation import NodeSet
from discovery.sites import Node
from tests.discovery.agent.search.test_mend import (
    FEW,
    GATES,
    f_from_tables,
    f_under_both_ablations,
    ignore_decision,
    tables,
)
from tests.discovery.agent.search.test_rivals import A, X, Y, f_over_heads


def slight(kept: NodeSet) -> float:
    """Two bystanders of 0.03 and 0.04: each is needed by (d), and the circuit meets every condition without both."""
    return (A in kept) + 0.04 * (X in kept) + 0.03 * (Y in kept)


def test_what_no_condition_asks_for_is_left_out_the_least_first() -> None:
    f = f_over_heads(slight)
    assert find_faults(f, frozenset({A, X, Y})).severity == (0.0, 0), "none is idle"
    told: list[Any] = []
    assert shrink(f, frozenset({A, X, Y}), lambda *event: told.append(event)) == {A}
    assert told == [
        (
            {"nodes": 1},
            "leave out a0.h1, a0.h2",
            "no more is held against what is left by (a) to (d)",
        )
    ]


def test_more_than_one_way_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving out first what is felt least ends with three nodes here; another way ends with two."""
    row = [
        0.013,
        0.013,
        1.0,
        1.0,
        0.973,
        0.853,
        0.973,
        1.057,
        0.157,
        0.157,
        0.013,
        0.973,
        0.91,
        0.973,
    ]
    first, second, third, fourth = FEW
    assert shrink(f_from_tables([row, row]), frozenset(FEW), ignore_decision) == {first, third}
    monkeypatch.setattr(module, "MAX_PAIRED_BACKUPS", 1)
    assert shrink(f_from_tables([row, row]), frozenset(FEW), ignore_decision) == {
        second,
        third,
        fourth,
    }


@pytest.mark.parametrize("name", GATES)
def test_a_gate_is_left_whole(name: str) -> None:
    value, gate = GATES[name]
    told: list[Any] = []
    assert (
        shrink(f_under_both_ablations(value), frozenset(gate), lambda *event: told.append(event))
        == gate
    )
    assert told == []


def test_one_node_is_never_left_out() -> None:
    assert shrink(f_over_heads(slight), frozenset({A}), ignore_decision) == {A}
    assert shrink(f_over_heads(slight), frozenset(), ignore_decision) == frozenset()


def test_where_the_budget_ends_what_was_left_out_stays_out() -> None:
    whole = frozenset({A, X, Y})
    ends = set()
    for budget in range(60):
        told: list[Any] = []
        found = shrink(
            f_over_heads(slight, budget), whole, lambda *event, told=told: told.append(event)
        )
        assert A in found
        ends.add((len(found), any(concluded == STOPPED_BY_BUDGET for _, concluded, _ in told)))
    assert {(3, True), (1, False)} <= ends


@settings(deadline=None, max_examples=150)
@given(
    rows=st.lists(tables, min_size=2, max_size=2), start=st.sets(st.sampled_from(FEW), min_size=1)
)
def test_never_worse_and_no_single_node_more_can_go(rows: Any, start: set[Node]) -> None:
    f = f_from_tables(rows)
    circuit = frozenset(start)
    allowed, found = find_faults(f, circuit).severity, shrink(f, circuit, ignore_decision)
    assert found <= circuit
    assert find_faults(f, found).severity <= allowed
    if len(found) > 1:
        for node in found:
            rest = found - {node}
            assert (
                total_excess(measure_fits(f, [rest])[0]) > 0
                or find_faults(f, rest).severity > allowed
            )
