"""The fit of a set, and the curve along a ranking, on an f that is a plain function of the set."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.agent.search.fit import (
    MAX_CURVE_SIZES,
    PLAIN,
    START_SURPLUS,
    WITH_MARGIN,
    Fit,
    choose_start,
    measure_curve,
    measure_fits,
    total_distance,
    total_excess,
)
from discovery.agent.search.measured import get_universe
from discovery.methods.ablation import NodeSet
from discovery.sites import Node, head
from tests.discovery.evaluation.synthetic import SyntheticFaithfulness

UNIVERSE = [head(0, h) for h in range(5)]
A, B, C, D, E = UNIVERSE


def gate(kept: NodeSet) -> float:
    return float({A, B} <= kept)


@pytest.mark.parametrize(
    ("faithfulness", "knockout", "expected"),
    [
        (1.0, 0.0, 0),
        (0.8, 0.2, 0),
        (1.2, -0.2, 0),
        (0.7, 0.0, 0.1),
        (1.5, 0.0, 0.3),
        (1.0, 0.5, 0.3),
        (1.0, -0.5, 0.3),
        (0.5, 0.6, 0.7),
    ],
)
def test_how_far_outside_the_bounds(faithfulness: float, knockout: float, expected: float) -> None:
    assert Fit(faithfulness, knockout).excess(PLAIN) == pytest.approx(expected)


def test_both_ablations_count() -> None:
    f_by_ablation = {
        "resample": SyntheticFaithfulness(UNIVERSE, gate),
        "mean": SyntheticFaithfulness(UNIVERSE, lambda kept: 0.5 * gate(kept) + 0.5 * (A in kept)),
    }
    (fit,) = measure_fits(f_by_ablation, [frozenset({A})])
    assert fit == {"resample": Fit(0.0, 0.0), "mean": Fit(0.5, 0.0)}
    assert total_excess(fit, PLAIN) == pytest.approx(0.8 + 0.3)
    assert total_distance(fit) == pytest.approx(1.5)
    assert total_excess(fit, WITH_MARGIN) == pytest.approx(0.85 + 0.35)
    assert get_universe(f_by_ablation) == frozenset(UNIVERSE)
    assert measure_fits(f_by_ablation, []) == []


def test_the_curve_of_a_gate() -> None:
    """It has every size under each ablation; the first that meets (a) and (b) holds the gate."""
    f_by_ablation = {
        "resample": SyntheticFaithfulness(UNIVERSE, gate),
        "mean": SyntheticFaithfulness(UNIVERSE, gate),
    }
    curve = measure_curve(f_by_ablation, [C, A, B, D, E], PLAIN)
    assert curve.smallest_size(PLAIN) == 3
    assert [(p.ablation, p.size, p.faithfulness) for p in curve.points] == [
        (ablation, k, float(k >= 3)) for ablation in ("resample", "mean") for k in range(6)
    ]
    assert [p.nodes for p in curve.points[:3]] == [(), ("a0.h2",), ("a0.h2", "a0.h0")]
    assert choose_start(f_by_ablation, curve, PLAIN) == {A, B, C, D}, "a quarter more"


def test_no_size_holds_if_one_ablation_never_does() -> None:
    """An empty set is no circuit, whatever its f, so only the whole universe is left."""
    f_by_ablation = {
        "resample": SyntheticFaithfulness(UNIVERSE, lambda kept: 1.0),
        "mean": SyntheticFaithfulness(UNIVERSE, lambda kept: 1.0),
    }
    curve = measure_curve(f_by_ablation, UNIVERSE, PLAIN)
    assert curve.smallest_size(PLAIN) is None
    assert choose_start(f_by_ablation, curve, PLAIN) == frozenset(UNIVERSE)


@settings(deadline=None, max_examples=100)
@given(
    values=st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0, 1.1, 1.5]), min_size=64, max_size=64),
    order=st.permutations(UNIVERSE),
)
def test_of_a_few_nodes_every_size_is_measured(values: list[float], order: list[Node]) -> None:
    def table(offset: int) -> SyntheticFaithfulness:
        return SyntheticFaithfulness(
            UNIVERSE, lambda kept: values[offset + sum(1 << UNIVERSE.index(node) for node in kept)]
        )

    f_by_ablation = {"resample": table(0), "mean": table(32)}
    curve = measure_curve(f_by_ablation, order, PLAIN)
    prefixes = [frozenset(order[:k]) for k in range(len(order) + 1)]
    fits = measure_fits(f_by_ablation, prefixes)
    passing = [k for k, fit in enumerate(fits) if k and total_excess(fit, PLAIN) == 0]
    assert curve.smallest_size(PLAIN) == min(passing, default=None)


@pytest.mark.parametrize("needed", [1, 2, 7, 50, 133, 299, 300])
def test_in_a_large_model_the_smallest_size_is_found_with_few_sets(needed: int) -> None:
    ranking = [head(layer, h) for layer in range(30) for h in range(10)]
    wanted = frozenset(ranking[:needed])
    f_by_ablation = {
        "resample": SyntheticFaithfulness(ranking, lambda kept: float(wanted <= kept)),
        "mean": SyntheticFaithfulness(ranking, lambda kept: len(kept & wanted) / needed),
    }
    curve = measure_curve(f_by_ablation, ranking, PLAIN)
    assert curve.smallest_size(PLAIN) == needed
    assert len(curve.fits) <= MAX_CURVE_SIZES + 6, "the widest step is 38 nodes"
    start = choose_start(f_by_ablation, curve, PLAIN)
    assert wanted <= start
    assert len(start) <= max(1, START_SURPLUS * needed + 1)
