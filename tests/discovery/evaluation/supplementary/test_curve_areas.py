"""CMD and CPR of curves whose areas are known."""

from __future__ import annotations

from typing import Any

import pytest

from discovery.evaluation.supplementary.curve_areas import (
    CURVE_SHARES,
    integrate_curve,
    integrate_curves,
)
from discovery.graph import CurvePoint


def test_a_ranking_that_is_useless_below_all_nodes_has_the_known_floor() -> None:
    areas = integrate_curve({k: float(k == 1000) for k in range(1001)})
    assert areas["cpr"] == pytest.approx(0.25)
    assert areas["cmd"] == pytest.approx(0.749, abs=1e-9)  # of 0.999


def test_a_perfect_ranking() -> None:
    areas = integrate_curve({k: float(k > 0) for k in range(1001)})
    assert areas["cmd"] == pytest.approx(0.0)
    assert areas["cmd_log"] == pytest.approx(0.0)
    assert areas["cpr_log"] == pytest.approx(1.0)


def test_above_one_counts_for_cpr_and_against_cmd() -> None:
    areas = integrate_curve(dict.fromkeys(range(1001), 2.0))
    assert (areas["cpr"], areas["cmd"]) == (pytest.approx(2 * 0.999), pytest.approx(0.999))
    assert areas["cmd_log"] == pytest.approx(1.0)


def test_a_straight_line_by_hand() -> None:
    areas = integrate_curve({k: k / 1000 for k in range(1001)})
    assert areas["cpr"] == pytest.approx((1 - 0.001**2) / 2)


def test_a_small_universe_rounds_shares_and_later_points_do_not_count() -> None:
    curve = [
        CurvePoint(ablation="resample", size=k, nodes=(), faithfulness=float(k == 10))
        for k in range(11)
    ]
    curve.append(
        CurvePoint(ablation="resample", size=5, nodes=(), faithfulness=1.0)
    )  # belongs to the mended circuit, not to the ranking
    curve.append(CurvePoint(ablation="mean", size=0, nodes=(), faithfulness=0.0))
    areas = integrate_curves(curve, 10)
    assert set(areas) == {"resample"}, "a curve that stops early has no area"
    resample: Any = areas["resample"]
    assert resample["cpr"] == pytest.approx(0.25)
    assert len(CURVE_SHARES) == 10
