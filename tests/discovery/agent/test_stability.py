"""What searches that were cut off can and cannot decide (condition f)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.agent.stages.stability import known_mean
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
    assert known_mean(jaccard, cut) == (None if expected is None else pytest.approx(expected))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.floats(0, 1)), min_size=1, max_size=20))
def test_what_is_said_holds_wherever_the_cut_searches_would_have_ended(searches: list[tuple[float, bool, float]]) -> None:
    known = known_mean([value for value, _, _ in searches], [cut for _, cut, _ in searches])
    if known is not None:
        true = sum(end if cut else value for value, cut, end in searches) / len(searches)
        assert (true >= thresholds.JACCARD - 1e-12) == (known >= thresholds.JACCARD)
