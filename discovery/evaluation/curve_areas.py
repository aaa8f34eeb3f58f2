"""CMD and CPR: how close to the model, and how high, is f over circuits of all sizes? (MIB; Mueller et al. 2025, arXiv 2504.13151)

CMD is the area between f and 1, 0 being best; CPR the area under f, which rewards leaving out what works against the behaviour and has no
upper bound. Sizes are shares of the universe, integrated by the trapezoid rule over MIB's grid. On that linear axis half of the area
lies beyond half of the nodes, and any ranking gets a CPR of 0.25; so the same areas over the logarithm of the share stand beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from scipy.integrate import trapezoid

from discovery.graph import EVIDENCE_ABLATIONS, CurvePoint
from discovery.graph.base import Json

CURVE_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def integrate_curves(curve: Iterable[CurvePoint], n_nodes: int) -> dict[str, Json]:
    """Both areas on both axes, per ablation; empty for an ablation whose curve does not reach the whole universe.

    Args:
        curve: f of a ranking's first k nodes, for every k; a later point of a size that is there already is not the ranking's.
        n_nodes: in the universe.
    """
    by_ablation: dict[str, dict[int, float]] = {}
    for point in curve:
        if point.faithfulness is not None:
            by_ablation.setdefault(point.ablation, {}).setdefault(point.size, point.faithfulness)
    found = {name: by_ablation.get(name, {}) for name in EVIDENCE_ABLATIONS}
    return {
        name: integrate_curve(values)
        for name, values in found.items()
        if set(values) >= set(range(n_nodes + 1))
    }


def integrate_curve(values: Mapping[int, float]) -> dict[str, Json]:
    """CMD and CPR of one ranking.

    A share of the universe is rounded to whole nodes (a half to the even number), so in a small universe several are the empty set: of ten
    nodes six of the ten, and the log-spaced areas are then mostly those of f(∅).

    Args:
        values: f of its first k nodes, for k from 0 to all.
    """
    n = max(values)
    shares = np.array(CURVE_SHARES)
    f = np.array([values[round(share * n)] for share in CURVE_SHARES])
    log = np.log10(shares)
    span = float(log[-1] - log[0])
    return {
        "cmd": float(trapezoid(np.abs(1 - f), shares)),
        "cpr": float(trapezoid(f, shares)),
        "cmd_log": float(trapezoid(np.abs(1 - f), log)) / span,  # of three decades
        "cpr_log": float(trapezoid(f, log)) / span,
        "shares": list(CURVE_SHARES),
    }
