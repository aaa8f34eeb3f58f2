"""How well a set does under both ablations: f(C) and f(U∖C), as points on discovery pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from discovery.errors import BudgetError
from discovery.evaluation import FaithfulnessByAblation, thresholds
from discovery.graph import CurvePoint, EvidenceAblation
from discovery.methods.ablation import NodeSet
from discovery.sites import Node


def get_universe(f_by_ablation: FaithfulnessByAblation) -> NodeSet:
    """Everything that can be ablated."""
    return next(f.everything for f in f_by_ablation.values())


@dataclass(frozen=True)
class Fit:
    """One set under one ablation."""

    faithfulness: float
    knockout: float

    @property
    def excess(self) -> float:
        """How far outside the bounds of (a) and (b), summed; 0 where both hold as points."""
        low, high = thresholds.FAITHFULNESS_BAND
        return max(low - self.faithfulness, self.faithfulness - high, 0.0) + max(
            abs(self.knockout) - thresholds.KNOCKOUT_BAND[1], 0.0
        )


def measure_fits(
    f_by_ablation: FaithfulnessByAblation, sets: Sequence[NodeSet], label: str = "candidates"
) -> list[dict[EvidenceAblation, Fit]]:
    """(a) and (b) of several sets, batched."""
    values: dict[EvidenceAblation, list[Fit]] = {}
    for ablation, f in f_by_ablation.items():
        found = f([s for made in sets for s in (made, f.everything - made)], label).tolist()
        values[ablation] = [Fit(found[2 * n], found[2 * n + 1]) for n in range(len(sets))]
    return [{ablation: values[ablation][n] for ablation in f_by_ablation} for n in range(len(sets))]


def total_excess(fit: Mapping[EvidenceAblation, Fit]) -> float:
    """Over all ablations."""
    return sum(part.excess for part in fit.values())


def total_distance(fit: Mapping[EvidenceAblation, Fit]) -> float:
    """|1 − f(C)|, summed over ablations."""
    return sum(abs(1 - part.faithfulness) for part in fit.values())


def measure_curve(
    f_by_ablation: FaithfulnessByAblation, ranking: Sequence[Node]
) -> tuple[list[CurvePoint], int | None]:
    """Faithfulness of the ranking's first k nodes, and the smallest k at which (a) and (b) hold under both ablations."""
    prefixes = [frozenset(ranking[:k]) for k in range(len(ranking) + 1)]
    found = measure_fits(f_by_ablation, prefixes, "faithfulness against size")
    names = [str(node) for node in ranking]
    points = [
        CurvePoint(
            ablation=ablation,
            size=k,
            nodes=tuple(names[:k]),
            faithfulness=fit[ablation].faithfulness,
        )
        for ablation in f_by_ablation
        for k, fit in enumerate(found)
    ]
    return points, next((k for k, fit in enumerate(found) if k and total_excess(fit) == 0), None)


def find_smallest_size(
    f_by_ablation: FaithfulnessByAblation,
    ranking: Sequence[Node],
    on_budget_error: Callable[[BudgetError], None],
) -> int | None:
    """The smallest size at which (a) and (b) hold, looking no further than it; what the budget does not reach is told and passed over."""
    for size in range(1, len(ranking) + 1):
        try:
            if (
                total_excess(
                    measure_fits(
                        f_by_ablation, [frozenset(ranking[:size])], "faithfulness against size"
                    )[0]
                )
                == 0
            ):
                return size
        except BudgetError as spent:
            on_budget_error(spent)
    return None


def choose_start(size: int | None, ranking: Sequence[Node]) -> NodeSet:
    """The curve's set of that size; where no size holds, the whole universe."""
    return frozenset(ranking if size is None else ranking[:size])
