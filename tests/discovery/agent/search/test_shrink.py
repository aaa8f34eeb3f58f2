"""Shrinking: the smallest of the sets that meet (a) to (d), on functions of known circuits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.agent.search import shrink as module
from discovery.agent.search.decision import ignore_decision
from discovery.agent.search.fit import PLAIN, WITH_MARGIN, measure_fits, total_excess
from discovery.agent.search.mend import Mending
from discovery.agent.search.shrink import examine_all, shrink
from discovery.errors import BudgetError
from discovery.methods.ablation import NodeSet
from discovery.sites import Node, head
from tests.discovery.agent.search.set_functions import (
    FEW,
    GATES,
    f_from_tables,
    f_over_heads,
    f_under_both_ablations,
    tables,
    with_bystanders,
)

A, X, Y = (head(0, h) for h in range(3))
slight = with_bystanders(0.04, 0.03)


def shrunk(f: Any, start: NodeSet) -> NodeSet:
    """Shrink a set, with all decisions ignored."""
    return shrink(make_mending(f), start)


def make_mending(f: Any) -> Mending:
    ranking = sorted(f["mean"].everything)
    return Mending(f, ranking, 0, ignore_decision)


def test_what_no_condition_asks_for_is_left_out() -> None:
    f = f_over_heads(slight)
    faults = examine_all(make_mending(f), frozenset({A, X, Y}))
    assert faults.severity(PLAIN) == 0
    assert faults.unneeded_nodes(PLAIN) == [], "each is needed by (d)"
    assert shrunk(f, frozenset({A, X, Y})) == {A}


def test_more_than_one_way_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropping the node with the least effect first ends with three nodes, another way with two."""
    row = [0.013, 0.013, 0.05, 0.973, 1.057, 1.057, 1.0]
    row += [0.973, 0.1, 0.0, 0.013, 0.91, 0.973, 1.057]
    first, second, third, fourth = FEW
    assert shrunk(f_from_tables([row, row]), frozenset(FEW)) == {second, third}
    monkeypatch.setattr(module, "BEAM_WIDTH", 1)
    assert shrunk(f_from_tables([row, row]), frozenset(FEW)) == {first, third, fourth}


@pytest.mark.parametrize("name", GATES)
def test_a_gate_is_left_whole(name: str) -> None:
    value, gate = GATES[name]
    assert shrunk(f_under_both_ablations(value), frozenset(gate)) == gate


def test_one_node_is_never_left_out() -> None:
    assert shrunk(f_over_heads(slight), frozenset({A})) == {A}
    assert shrunk(f_over_heads(slight), frozenset()) == frozenset()


def test_a_large_circuit_is_left_as_it_is() -> None:
    heads = [head(0, h) for h in range(module.MAX_SMALL_CIRCUIT + 1)]
    f = f_under_both_ablations(lambda kept: float(A in kept), universe=heads)
    assert shrunk(f, frozenset(heads)) == frozenset(heads)


def test_the_end_of_the_budget_is_told() -> None:
    with pytest.raises(BudgetError):
        shrunk(f_over_heads(slight, budget=9), frozenset({A, X, Y}))


@settings(deadline=None, max_examples=150)
@given(
    rows=st.lists(tables, min_size=2, max_size=2), start=st.sets(st.sampled_from(FEW), min_size=1)
)
def test_never_worse_and_no_single_node_more_can_go(rows: Any, start: set[Node]) -> None:
    f = f_from_tables(rows)
    circuit = frozenset(start)
    mending = make_mending(f)
    allowed = examine_all(mending, circuit).order
    smallest = shrunk(f, circuit)
    assert smallest <= circuit
    assert examine_all(mending, smallest).order <= allowed
    if len(smallest) > 1:
        for node in smallest:
            rest = smallest - {node}
            assert (
                total_excess(measure_fits(f, [rest])[0], WITH_MARGIN) > 0
                or examine_all(mending, rest).order > allowed
            )
