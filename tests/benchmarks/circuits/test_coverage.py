"""The shares of templates in a sample."""

from __future__ import annotations

from benchmarks.circuits.coverage import divide_proportionally


def test_shares_add_up() -> None:
    assert divide_proportionally([10, 10, 10], 10) == [4, 3, 3]
    assert divide_proportionally([600, 600, 1200], 48) == [12, 12, 24]
