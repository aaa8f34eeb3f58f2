"""Draws from a population."""

from __future__ import annotations

from benchmarks.coverage import shares


def test_shares_add_up() -> None:
    assert shares([10, 10, 10], 10) == [4, 3, 3]
    assert shares([600, 600, 1200], 48) == [12, 12, 24]
