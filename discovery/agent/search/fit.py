"""How well a set of nodes does under both ablations: f(C) and f(U∖C), as points on discovery pairs.

The curve of these points along the ranking of single nodes says with which set a search begins.

A circuit is judged on prompts that it was not chosen on. One that meets a bound narrowly on
discovery pairs often misses it there, so the search prefers sets that keep a distance to each bound
(`WITH_MARGIN`). If it finds none, it takes the best set by the conditions themselves (`PLAIN`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from discovery.agent.search.measured import SearchFunctions, get_universe
from discovery.evaluation import thresholds
from discovery.graph import CurvePoint, EvidenceAblation
from discovery.methods.ablation import NodeSet
from discovery.sites import Node

MAX_SMALL_CIRCUIT = 16  # nodes; only so small a circuit is searched set by set
ROUNDING = 9  # decimals by which numbers are compared, so that rounding decides no order
CURVE_LABEL = "faithfulness against size"
MAX_CURVE_SIZES = 13  # sizes that are measured before the bisection
START_SURPLUS = 1.25  # the start is so much larger than the smallest size that will do


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds on a circuit.

    Attributes:
        faithfulness: the lowest and the highest f(C) (a).
        knockout: the largest |f(U∖C)| (b).
        gap_in: the largest |f(C∖u) − f(U∖u)| of a node u of the circuit (c).
        gap_out: the largest |f(C∪v) − f(C)| of a node v outside (c).
        drop_share: the smallest drop of a node of the circuit, as a share of δ (d).
    """

    faithfulness: tuple[float, float]
    knockout: float
    gap_in: float
    gap_out: float
    drop_share: float


PLAIN = Bounds(
    faithfulness=thresholds.FAITHFULNESS_BAND,
    knockout=thresholds.KNOCKOUT_BAND[1],
    gap_in=thresholds.MAX_GAP_IN,
    gap_out=thresholds.MAX_GAP_OUT,
    drop_share=1.0,
)
WITH_MARGIN = Bounds(
    faithfulness=(0.85, 1.15), knockout=0.15, gap_in=0.15, gap_out=0.08, drop_share=1.25
)


@dataclass(frozen=True)
class Fit:
    """How well one set does under one ablation.

    Attributes:
        faithfulness: f(C), with everything outside the set ablated.
        knockout: f(U∖C), with the set itself ablated.
    """

    faithfulness: float
    knockout: float

    def excess(self, bounds: Bounds) -> float:
        """Return how far the set misses the bounds of (a) and (b), summed; 0 if both hold."""
        low, high = bounds.faithfulness
        missed = max(low - self.faithfulness, self.faithfulness - high, 0.0)
        return missed + max(abs(self.knockout) - bounds.knockout, 0.0)


FitByAblation = Mapping[EvidenceAblation, Fit]


def measure_fits(
    functions: SearchFunctions,
    sets: Sequence[NodeSet],
    label: str = "candidates",
    *,
    screen: bool = False,
) -> list[dict[EvidenceAblation, Fit]]:
    """Measure f(C) and f(U∖C) of several sets in one batch for each ablation.

    Args:
        functions: f under each ablation.
        sets: the sets.
        label: names the work for progress and errors.
        screen: whether a few pairs are enough.

    Returns:
        For each set, its fit under each ablation.

    Raises:
        BudgetError: if the budget does not reach that far.
    """
    fits: dict[EvidenceAblation, list[Fit]] = {}
    for ablation, f in functions.items():
        with_complements = [s for nodes in sets for s in (nodes, f.everything - nodes)]
        measure = f.screen if screen else f
        values = measure(with_complements, label).tolist()
        fits[ablation] = [
            Fit(faithfulness, knockout)
            for faithfulness, knockout in zip(values[0::2], values[1::2], strict=True)
        ]
    return [{ablation: fits[ablation][n] for ablation in functions} for n in range(len(sets))]


def measure_passing(
    functions: SearchFunctions, sets: Sequence[NodeSet], label: str, max_screened_excess: float
) -> dict[NodeSet, FitByAblation]:
    """Measure the fits of the sets that meet (a) and (b) with a margin.

    A set that misses them by far on a few pairs is not measured on all.

    Args:
        functions: f under each ablation.
        sets: the sets.
        label: names the work for progress and errors.
        max_screened_excess: a set that misses (a) and (b) by so much on a few pairs is out.

    Returns:
        The sets that pass, in their order, with their fits.

    Raises:
        BudgetError: if the budget does not reach that far.
    """
    if not sets:
        return {}
    screened = measure_fits(functions, sets, label, screen=True)
    hopeful = [
        nodes
        for nodes, fit in zip(sets, screened, strict=True)
        if total_excess(fit, WITH_MARGIN) < max_screened_excess
    ]
    fits = measure_fits(functions, hopeful, label)
    return {
        nodes: fit
        for nodes, fit in zip(hopeful, fits, strict=True)
        if total_excess(fit, WITH_MARGIN) == 0
    }


def total_excess(fit: FitByAblation, bounds: Bounds) -> float:
    """Return the total excess over both ablations: 0 if (a) and (b) hold as points under both."""
    return sum(part.excess(bounds) for part in fit.values())


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


@dataclass(frozen=True)
class Curve:
    """Fits of the ranking's first k nodes, for some k.

    Attributes:
        ranking: all nodes, the largest effect first.
        fits: the fit of each size that was measured.
    """

    ranking: Sequence[Node]
    fits: Mapping[int, FitByAblation]

    @property
    def points(self) -> list[CurvePoint]:
        """The measured sizes as points of the record's curve, ablation by ablation."""
        names = [str(node) for node in self.ranking]
        ablations = next(iter(self.fits.values()))
        return [
            curve_point(ablation, names[:size], fit)
            for ablation in ablations
            for size, fit in sorted(self.fits.items())
        ]

    def smallest_size(self, bounds: Bounds) -> int | None:
        """Return the smallest measured size above 0 that meets (a) and (b); None if none does."""
        passing = (n for n, fit in self.fits.items() if n and total_excess(fit, bounds) == 0)
        return min(passing, default=None)


def measure_curve(functions: SearchFunctions, ranking: Sequence[Node], bounds: Bounds) -> Curve:
    """Measure the ranking's first k nodes, for a few sizes k from 0 to all, then by bisection.

    The bisection looks for the smallest k that meets (a) and (b), between the smallest measured
    size that does and the next smaller one.
    """
    fits: dict[int, FitByAblation] = {}

    def measure(sizes: Sequence[int]) -> None:
        prefixes = [frozenset(ranking[:size]) for size in sizes]
        fits.update(zip(sizes, measure_fits(functions, prefixes, CURVE_LABEL), strict=True))

    measure(_choose_sizes(len(ranking)))
    curve = Curve(ranking, fits)
    while (size := curve.smallest_size(bounds)) is not None:
        below = max(smaller for smaller in fits if smaller < size)
        if size - below < 2:
            break
        measure([(size + below) // 2])
    return curve


def choose_start(functions: SearchFunctions, curve: Curve, bounds: Bounds) -> NodeSet:
    """Return the first nodes of the ranking from which the search begins.

    They are a quarter more than the smallest size that meets (a) and (b), since what each node
    does is seen better with too many nodes than with too few. If no size will do, it is all nodes.
    """
    size = curve.smallest_size(bounds)
    if size is None:
        return get_universe(functions)
    return frozenset(curve.ranking[: math.ceil(START_SURPLUS * size)])


def _choose_sizes(n_nodes: int) -> list[int]:
    """Return sizes from 0 to all nodes, denser where they are small."""
    steps = MAX_CURVE_SIZES - 1
    if n_nodes <= steps:
        return list(range(n_nodes + 1))
    return sorted({round(n_nodes * (step / steps) ** 1.5) for step in range(steps + 1)})
