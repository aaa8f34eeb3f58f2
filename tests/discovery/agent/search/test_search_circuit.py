"""The whole search after the curve: mend, shrink, and compare with rivals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.agent.search.search_circuit import search_circuit
from discovery.sites import Node, head
from tests.discovery.agent.search.set_functions import (
    FEW,
    GATES,
    UNIVERSE,
    f_from_tables,
    f_over_heads,
    f_under_both_ablations,
    ignore_decision,
    tables,
    with_bystanders,
)


def test_bystanders_are_left_out_and_the_node_that_does_the_work_is_kept() -> None:
    main, first, second = (head(0, h) for h in range(3))
    f = f_over_heads(with_bystanders(0.03, 0.03), heads=8)
    ranking = [main, first, second]
    assert search_circuit(f, frozenset(ranking), ranking, 0, ignore_decision) == {main}


@pytest.mark.parametrize("name", GATES)
def test_a_gate_is_found_from_the_whole_universe(name: str) -> None:
    value, gate = GATES[name]
    f = f_under_both_ablations(value, noise=0.005)
    assert search_circuit(f, frozenset(UNIVERSE), UNIVERSE, 0, ignore_decision) == gate


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
    assert search_circuit(f, frozenset(start), FEW, 0, ignore_decision) <= frozenset(FEW)
