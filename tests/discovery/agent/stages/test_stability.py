"""Repeated searches under a limit, and what cut-off searches can decide about condition (f)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from discovery.agent.stages import stability
from discovery.agent.stages.stability import ResampleSearch, decidable_mean
from discovery.evaluation import thresholds


@pytest.mark.parametrize(
    ("jaccard", "cut", "expected"),
    [
        ([1.0, 0.9], [False, False], 0.95),
        ([0.5, 0.7], [False, False], 0.6),
        ([1.0] * 9 + [0.0], [False] * 9 + [True], 0.9),  # even at 0 it is enough
        ([1.0] * 7 + [0.9] * 3, [False] * 7 + [True] * 3, None),  # 0.7 to 1
        ([0.1] * 9 + [1.0], [False] * 9 + [True], 0.19),  # even at 1 it is too little
        ([1.0, 1.0], [True, True], None),
    ],
)
def test_the_mean_by_hand(jaccard: list[float], cut: list[bool], expected: float | None) -> None:
    assert decidable_mean(jaccard, cut) == (None if expected is None else pytest.approx(expected))


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.floats(0, 1)), min_size=1, max_size=20)
)
def test_the_decision_holds_wherever_the_cut_searches_would_have_ended(
    searches: list[tuple[float, bool, float]],
) -> None:
    mean = decidable_mean([value for value, _, _ in searches], [cut for _, cut, _ in searches])
    if mean is not None:
        true = sum(end if cut else value for value, cut, end in searches) / len(searches)
        assert (true >= thresholds.MIN_JACCARD - 1e-12) == (mean >= thresholds.MIN_JACCARD)


class FakeMeter:
    """A meter that only has a limit, and counts what a test adds."""

    limit: float | None = None
    spent = 0.0


def which_are_cut(
    monkeypatch: pytest.MonkeyPatch, costs: list[list[float]], max_spent: float
) -> list[bool]:
    """Return which searches are cut off.

    Each search is a row of measurements. A measurement is made once, and not begun if the limit
    does not reach it.
    """
    meter = FakeMeter()
    waiting = [list(row) for row in costs]

    def search(_: Any, number: torch.Tensor) -> ResampleSearch:
        row = waiting[int(number)]
        while row:
            assert meter.limit is not None
            if meter.spent + row[0] > meter.limit:
                return ResampleSearch(frozenset(), "the budget")
            meter.spent += row.pop(0)
        return ResampleSearch(frozenset())

    monkeypatch.setattr(stability, "_search_resample", search)
    context: Any = SimpleNamespace(meter=meter)
    searches = stability._repeat_search(context, torch.arange(len(costs)).float(), max_spent)
    assert meter.limit is None
    assert meter.spent <= max_spent
    return [search.cut_off is not None for search in searches]


def test_a_long_search_does_not_stop_the_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert which_are_cut(monkeypatch, [[5.0] * 100, *[[5.0]] * 9], 100) == [True, *[False] * 9]


def test_what_short_searches_leave_goes_to_the_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert which_are_cut(monkeypatch, [[20.0, 20.0], [30.0], [1.0], [1.0]], 80) == [False] * 4


def test_what_is_left_goes_to_one_search_if_an_equal_part_begins_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert which_are_cut(monkeypatch, [[40.0], [40.0], [40.0]], 90) == [False, False, True]


def test_nothing_is_searched_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    assert which_are_cut(monkeypatch, [[40.0], [40.0]], 10) == [True, True]
