"""The fit of a set, and the curve along a ranking, on an f that is a plain function of the set."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.agent.search.fit import (
    Fit,
    choose_start,
    find_smallest_size,
    get_universe,
    measure_curve,
    measure_fits,
    total_distance,
    total_excess,
)
from discovery.errors import BudgetError
from discovery.methods.ablation import NodeSet
from discovery.sites import head
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
    assert Fit(faithfulness, knockout).excess == pytest.approx(expected)


def test_both_ablations_count() -> None:
    f_by_ablation = {
        "resample": SyntheticFaithfulness(UNIVERSE, gate),
        "mean": SyntheticFaithfulness(UNIVERSE, lambda kept: 0.5 * gate(kept) + 0.5 * (A in kept)),
    }
    (fit,) = measure_fits(f_by_ablation, [frozenset({A})])
    assert fit == {"resample": Fit(0.0, 0.0), "mean": Fit(0.5, 0.0)}
    assert total_excess(fit) == pytest.approx(0.8 + 0.3)
    assert total_distance(fit) == pytest.approx(1.5)
    assert get_universe(f_by_ablation) == frozenset(UNIVERSE)
    assert measure_fits(f_by_ablation, []) == []


def test_the_curve_of_a_gate() -> None:
    """It has every size under each ablation; the first that meets (a) and (b) holds the gate."""
    f_by_ablation = {
        "resample": SyntheticFaithfulness(UNIVERSE, gate),
        "mean": SyntheticFaithfulness(UNIVERSE, gate),
    }
    points, size = measure_curve(f_by_ablation, [C, A, B, D, E])
    assert size == 3
    assert [(p.ablation, p.size, p.faithfulness) for p in points] == [
        (ablation, k, float(k >= 3)) for ablation in ("resample", "mean") for k in range(6)
    ]
    assert [p.nodes for p in points[:3]] == [(), ("a0.h2",), ("a0.h2", "a0.h0")]
    assert choose_start(size, [C, A, B, D, E]) == {A, B, C}
    assert choose_start(None, UNIVERSE) == frozenset(UNIVERSE)


def test_no_size_holds_if_one_ablation_never_does() -> None:
    """An empty set is no circuit, whatever its f, so only the whole universe is left."""
    f_by_ablation = {
        "resample": SyntheticFaithfulness(UNIVERSE, lambda kept: 1.0),
        "mean": SyntheticFaithfulness(UNIVERSE, lambda kept: 1.0),
    }
    assert measure_curve(f_by_ablation, UNIVERSE)[1] is None
    assert find_smallest_size(f_by_ablation, UNIVERSE, pytest.fail) is None


@settings(deadline=None, max_examples=100)
@given(
    values=st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0, 1.1, 1.5]), min_size=64, max_size=64),
    order=st.permutations(UNIVERSE),
)
def test_the_smallest_size_is_the_curves(values: list[float], order: list[object]) -> None:
    """It measures no larger size."""

    def table(offset: int) -> SyntheticFaithfulness:
        return SyntheticFaithfulness(
            UNIVERSE, lambda kept: values[offset + sum(1 << UNIVERSE.index(node) for node in kept)]
        )

    f_by_ablation = {"resample": table(0), "mean": table(32)}
    size = measure_curve(f_by_ablation, order)[1]  # type: ignore[arg-type]  # nodes
    again = {"resample": table(0), "mean": table(32)}
    assert find_smallest_size(again, order, pytest.fail) == size  # type: ignore[arg-type]  # nodes
    if size is not None:
        assert len(again["resample"].measured) <= 2 * size


def test_sizes_that_the_budget_does_not_reach_are_passed_over() -> None:
    faults: list[BudgetError] = []
    f = SyntheticFaithfulness(UNIVERSE, gate, budget=2)
    assert find_smallest_size({"resample": f}, UNIVERSE, faults.append) is None
    assert len(faults) == len(UNIVERSE) - 1
    f = SyntheticFaithfulness(UNIVERSE, gate, budget=4)
    assert find_smallest_size({"resample": f}, UNIVERSE, pytest.fail) == 2
