"""How well a set of nodes does under both ablations: f(C) and f(U∖C), as points on discovery pairs.

The curve of these points along the ranking of single nodes says with which set a search begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from discovery.errors import BudgetError
from discovery.evaluation import FaithfulnessByAblation, thresholds
from discovery.graph import CurvePoint, EvidenceAblation
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

CURVE_LABEL = "faithfulness against size"


@dataclass(frozen=True)
class Fit:
    """How well one set does under one ablation.

    Attributes:
        faithfulness: f(C), with everything outside the set ablated.
        knockout: f(U∖C), with the set itself ablated.
    """

    faithfulness: float
    knockout: float

    @property
    def excess(self) -> float:
        """How far the set misses the bounds of (a) and of (b), summed; 0 if both hold as points."""
        low, high = thresholds.FAITHFULNESS_BAND
        return max(low - self.faithfulness, self.faithfulness - high, 0.0) + max(
            abs(self.knockout) - thresholds.KNOCKOUT_BAND[1], 0.0
        )


FitByAblation = Mapping[EvidenceAblation, Fit]


def get_universe(f_by_ablation: FaithfulnessByAblation) -> NodeSet:
    """Return every node that can be ablated."""
    return next(f.everything for f in f_by_ablation.values())


def measure_fits(
    f_by_ablation: FaithfulnessByAblation, sets: Sequence[NodeSet], label: str = "candidates"
) -> list[dict[EvidenceAblation, Fit]]:
    """Measure f(C) and f(U∖C) of several sets in one batch for each ablation.

    Returns:
        For each set, its fit under each ablation.

    Raises:
        BudgetError: If the budget does not reach that far.
    """
    fits: dict[EvidenceAblation, list[Fit]] = {}
    for ablation, f in f_by_ablation.items():
        with_complements = [s for nodes in sets for s in (nodes, f.everything - nodes)]
        values = f(with_complements, label).tolist()
        fits[ablation] = [
            Fit(faithfulness, knockout)
            for faithfulness, knockout in zip(values[0::2], values[1::2], strict=True)
        ]
    return [{ablation: fits[ablation][n] for ablation in f_by_ablation} for n in range(len(sets))]


def total_excess(fit: FitByAblation) -> float:
    """Return the total excess over both ablations: 0 if (a) and (b) hold as points under both."""
    return sum(part.excess for part in fit.values())


def total_distance(fit: FitByAblation) -> float:
    """Return |1 − f(C)|, summed over both ablations."""
    return sum(abs(1 - part.faithfulness) for part in fit.values())


def describe_fit(fit: FitByAblation) -> dict[EvidenceAblation, dict[str, float]]:
    """Return f(C) and f(U∖C) under each ablation, as an event of the journal shows them."""
    return {
        ablation: {"f(C)": part.faithfulness, "f(U\\C)": part.knockout}
        for ablation, part in fit.items()
    }


def curve_point(ablation: EvidenceAblation, nodes: Sequence[str], fit: FitByAblation) -> CurvePoint:
    """Return a set as a point of the record's curve."""
    return CurvePoint(
        ablation=ablation,
        size=len(nodes),
        nodes=tuple(nodes),
        faithfulness=fit[ablation].faithfulness,
    )


def measure_curve(
    f_by_ablation: FaithfulnessByAblation, ranking: Sequence[Node]
) -> tuple[list[CurvePoint], int | None]:
    """Measure faithfulness of the ranking's first k nodes, for every k from 0 to all.

    Returns:
        The points of the curve under each ablation, and the smallest k above 0 for which (a) and
        (b) hold as points under both ablations; None if there is no such k.
    """
    prefixes = [frozenset(ranking[:k]) for k in range(len(ranking) + 1)]
    fits = measure_fits(f_by_ablation, prefixes, CURVE_LABEL)
    names = [str(node) for node in ranking]
    points = [
        curve_point(ablation, names[:k], fit)
        for ablation in f_by_ablation
        for k, fit in enumerate(fits)
    ]
    return points, next((k for k, fit in enumerate(fits) if k and total_excess(fit) == 0), None)


def find_smallest_size(
    f_by_ablation: FaithfulnessByAblation,
    ranking: Sequence[Node],
    on_budget_error: Callable[[BudgetError], None],
) -> int | None:
    """Find the size that `measure_curve` returns, without measuring any larger size.

    A size that the budget does not reach is reported to `on_budget_error` and passed over.
    """
    for size in range(1, len(ranking) + 1):
        try:
            (fit,) = measure_fits(f_by_ablation, [frozenset(ranking[:size])], CURVE_LABEL)
        except BudgetError as fault:
            on_budget_error(fault)
            continue
        if total_excess(fit) == 0:
            return size
    return None


def choose_start(size: int | None, ranking: Sequence[Node]) -> NodeSet:
    """Return the ranking's first `size` nodes; the whole universe if no size will do."""
    return frozenset(ranking if size is None else ranking[:size])
