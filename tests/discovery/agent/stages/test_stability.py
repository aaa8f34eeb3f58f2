"""What searches that were cut off can and cannot decide (condition f)."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from discovery.agent.stages.stability import decidable_mean
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
def test_known_mean(jaccard: list[float], cut: list[bool], expected: float | None) -> None:
    assert decidable_mean(jaccard, cut) == (None if expected is None else pytest.approx(expected))


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.floats(0, 1)), min_size=1, max_size=20)
)
def test_what_is_said_holds_wherever_the_cut_searches_would_have_ended(
    searches: list[tuple[float, bool, float]],
) -> None:
    known = decidable_mean([value for value, _, _ in searches], [cut for _, cut, _ in searches])
    if known is not None:
        true = sum(end if cut else value for value, cut, end in searches) / len(searches)
        assert (true >= thresholds.MIN_JACCARD - 1e-12) == (known >= thresholds.MIN_JACCARD)


class FakeMeter:
    """A meter of which only the limit counts."""

    limit: float | None = None
    spent = 0.0


def which_are_cut(
    monkeypatch: pytest.MonkeyPatch, costs: list[list[float]], allowed: float
) -> list[bool]:
    """Which searches are cut off, where each is a row of pieces that are measured once, or not begun where the limit does not reach."""
    meter, waiting = FakeMeter(), [list(pieces) for pieces in costs]

    def select(_: Any, draw: torch.Tensor) -> tuple[frozenset[Any], str | None]:
        pieces = waiting[int(draw)]
        while pieces:
            assert meter.limit is not None
            if meter.spent + pieces[0] > meter.limit:
                return frozenset(), "the budget"
            meter.spent += pieces.pop(0)
        return frozenset(), None

    module = sys.modules["discovery.agent.stages.stability"]
    monkeypatch.setattr(module, "_search_resample", select)
    found = module.__dict__["_repeat_search"](
        SimpleNamespace(meter=meter), torch.arange(len(costs)), allowed
    )
    assert meter.limit is None
    assert meter.spent <= allowed
    return [why is not None for _, why in found]


def test_a_long_search_does_not_stop_the_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert which_are_cut(monkeypatch, [[5.0] * 100, *[[5.0]] * 9], 100) == [True, *[False] * 9]


def test_what_short_searches_leave_goes_to_the_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert which_are_cut(monkeypatch, [[20.0, 20.0], [30.0], [1.0], [1.0]], 80) == [False] * 4


def test_what_is_left_goes_to_one_search_where_an_equal_part_begins_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert which_are_cut(monkeypatch, [[40.0], [40.0], [40.0]], 90) == [False, False, True]


def test_nothing_is_searched_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    assert which_are_cut(monkeypatch, [[40.0], [40.0]], 10) == [True, True]
