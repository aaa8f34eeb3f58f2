"""Condition (f): the weight of a node, and the weighted Jaccard index, on hand-made numbers."""

from __future__ import annotations

import pytest

from discovery.evaluation import (
    combine_weights,
    minimal_drop,
    plain_jaccard,
    weigh_nodes,
    weighted_jaccard,
)
from discovery.sites import Node
from tests.oracles.evaluation.faithfulness import nodes

A, B, C, D = sorted(nodes("a0.h0", "a0.h1", "a1.h0", "m1"))


def test_a_node_just_above_the_minimal_drop_counts_half_and_a_clearly_needed_one_whole() -> None:
    drops = {"resample": {A: 0.02, B: 0.04, C: 0.5}, "mean": {A: 0.0, B: 0.0, C: 0.0}}
    weights = weigh_nodes(drops, {"resample": 0.02, "mean": 0.02})  # type: ignore[arg-type]
    assert weights == {A: 0.5, B: 1.0, C: 1.0}


def test_the_ablation_under_which_a_node_weighs_more_counts() -> None:
    """0.012 of 2 · 0.02 is 0.3, and 0.009 of 2 · 0.006 is 0.75."""
    drops = {"resample": {A: 0.012}, "mean": {A: 0.009}}
    weights = weigh_nodes(drops, {"resample": 0.02, "mean": 0.006})  # type: ignore[arg-type]
    assert weights == {A: pytest.approx(0.75)}


def test_without_a_minimal_drop_every_node_weighs_one() -> None:
    assert weigh_nodes({"mean": {A: 0.0}}, {"mean": 0.0}) == {A: 1.0}


def test_the_weighted_index_is_the_share_of_the_common_weight() -> None:
    """Common: A (1) and B (0.5). One of them only: C (0.5) and D (1)."""
    weights = combine_weights({A: 1.0, B: 0.25, C: 0.5}, {A: 0.5, B: 0.5, D: 1.0})
    assert weights == {A: 1.0, B: 0.5, C: 0.5, D: 1.0}
    circuit, other = frozenset({A, B, C}), frozenset({A, B, D})
    assert weighted_jaccard(circuit, other, weights) == pytest.approx(1.5 / 3.0)
    assert plain_jaccard(circuit, other) == pytest.approx(2 / 4)
    whole = dict.fromkeys((A, B, C, D), 1.0)
    assert weighted_jaccard(circuit, other, whole) == plain_jaccard(circuit, other)


def test_a_node_that_weighs_little_changes_little() -> None:
    weights = {A: 1.0, B: 1.0, C: 0.5}
    circuit, other = frozenset({A, B, C}), frozenset({A, B})
    assert weighted_jaccard(circuit, other, weights) == pytest.approx(0.8)
    assert plain_jaccard(circuit, other) == pytest.approx(2 / 3)


def test_equal_circuits_and_empty_ones() -> None:
    empty: frozenset[Node] = frozenset()
    assert weighted_jaccard(frozenset({A}), frozenset({A}), {A: 0.1}) == 1.0
    assert weighted_jaccard(empty, empty, {}) == plain_jaccard(empty, empty) == 1.0
    assert weighted_jaccard(frozenset({A}), empty, {A: 0.3}) == 0.0
    with pytest.raises(KeyError):
        weighted_jaccard(frozenset({A}), frozenset({B}), {A: 1.0})


@pytest.mark.parametrize(
    ("faithfulness", "size", "expected"),
    [
        (1.0, 3, 0.02),
        (1.0, 25, 0.02),
        (1.0, 50, 0.01),
        (0.9, 50, 0.009),
        (0.8, 100, 0.004),
        (0.0, 10, 0.0),
        (-0.3, 10, 0.0),
        (1.0, 0, 0.02),
    ],
)
def test_the_minimal_drop(faithfulness: float, size: int, expected: float) -> None:
    assert minimal_drop(faithfulness, size) == pytest.approx(expected)
