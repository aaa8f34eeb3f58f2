"""CMD and CPR: how close to the model f is over circuits of all sizes, and how high it is.

Both are from MIB (Mueller et al. 2025, arXiv 2504.13151). CMD is the area between f and 1; 0 is
best. CPR is the area under f; it rewards leaving out what works against the behaviour, and has no
upper bound. Sizes are shares of the universe, and the areas are integrated by the trapezoid rule
over MIB's grid of shares. On that linear axis half of the area lies beyond half of the nodes, and
any ranking gets a CPR of 0.25. So the same areas over the logarithm of the share are given too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from scipy.integrate import trapezoid

from discovery.graph import EVIDENCE_ABLATIONS, CurvePoint
from discovery.graph.base import Json

CURVE_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def integrate_curves(curve: Iterable[CurvePoint], n_nodes: int) -> dict[str, Json]:
    """Return both areas on both axes, by ablation.

    An ablation whose curve does not reach the whole universe is left out.

    Args:
        curve: f of a ranking's first k nodes, for every k. If a size occurs again later, that point
            belongs to another set than the ranking's, and it is ignored.
        n_nodes: the number of nodes in the universe.
    """
    by_ablation: dict[str, dict[int, float]] = {}
    for point in curve:
        if point.faithfulness is not None:
            by_ablation.setdefault(point.ablation, {}).setdefault(point.size, point.faithfulness)
    values_by_ablation = {name: by_ablation.get(name, {}) for name in EVIDENCE_ABLATIONS}
    return {
        name: integrate_curve(values)
        for name, values in values_by_ablation.items()
        if set(values) >= set(range(n_nodes + 1))
    }


def integrate_curve(values: Mapping[int, float]) -> dict[str, Json]:
    """Return CMD and CPR of one ranking, on both axes, with the shares they are integrated over.

    A share of the universe is rounded to whole nodes (a half to the even number). In a small
    universe several shares are therefore the empty set (six of the ten in one of ten nodes), and
    the areas over the logarithm are then mostly those of f(∅).

    Args:
        values: f of the ranking's first k nodes, for k from 0 to all.
    """
    n_nodes = max(values)
    shares = np.array(CURVE_SHARES)
    f = np.array([values[round(share * n_nodes)] for share in CURVE_SHARES])
    log_shares = np.log10(shares)
    log_span = float(log_shares[-1] - log_shares[0])  # three decades
    return {
        "cmd": float(trapezoid(np.abs(1 - f), shares)),
        "cpr": float(trapezoid(f, shares)),
        "cmd_log": float(trapezoid(np.abs(1 - f), log_shares)) / log_span,
        "cpr_log": float(trapezoid(f, log_shares)) / log_span,
        "shares": list(CURVE_SHARES),
    }
