"""How well a dictionary stands for the activation here: a feature of a poor reconstruction explains little.

    variance explained    1 − Σ |x − x̂|² / Σ |x − mean x|², over the positions looked at, the mean taken over them
    L0                    features that are not 0 at a position, mean
    share of the metric   with x̂ in place of x at these positions: (m(x̂) − m(corrupted)) / (m(clean) − m(corrupted));
                          of a single prompt m(x̂) / m(clean)

Poor is below 0.7 of the variance, or a share outside 0.7 to 1.3. The thresholds are ours: good dictionaries of the literature explain
0.8 and more and keep over 0.9 of the loss (Gao et al. 2024, arXiv 2406.04093; Karvonen et al. 2025, arXiv 2503.09532), on
their training text; prompts of a task are harder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.engine import Engine, Window
from discovery.features import SAE
from discovery.methods.features.arguments import PairPositions
from discovery.methods.features.splice import (
    SplicedBlock,
    batch_pairs,
    max_pairs_encoded,
    spliced_blocks,
)
from discovery.methods.statistics import Interval, Resamples, interval_of_ratio

MIN_VARIANCE_EXPLAINED = 0.7
METRIC_SHARE_BOUNDS = (0.7, 1.3)
OUTLIER_NORM_RATIO = 10.0  # times the norm of the others: the first token that attention rests on
TINY = 1e-6


@dataclass(frozen=True)
class Reconstruction:
    """The dictionary on these prompts.

    Attributes:
        variance_explained: None where all positions have the same activation. n_positions: over how many.
        share: of the metric that survives; None where there is nothing to divide by. metric_spliced: its mean with x̂ spliced in.
        poor: each measure below its threshold, with its numbers; empty where the reconstruction is good enough.
        notes: what may mislead in these numbers.
    """

    variance_explained: float | None
    l0: float
    share: Interval | None
    metric_spliced: float
    n_positions: int
    poor: tuple[str, ...]
    notes: tuple[str, ...] = ()


def measure_reconstruction(
    engine: Engine,
    sae: SAE,
    places: PairPositions,
    base: Float[Tensor, "pair"],
    resamples: Resamples,
) -> tuple[Reconstruction, Float[Tensor, "pair"]]:
    """Measure a dictionary on all pairs.

    Args:
        base: what the share is counted from, m(corrupted) of each pair or 0.

    Returns:
        What was found, and the metric of each pair with the reconstruction spliced in.
    """
    totals = _Totals(sae.d_out)
    values = []
    for view in spliced_blocks(engine, sae, places):
        for part in view.pair_batches():
            totals.add(view, part)
        values.append(metric_of_reconstruction(view))
    metric = torch.cat(values)
    above, below = (metric - base).double(), (engine.baseline("clean") - base).double()
    share = _share(above, below, resamples)
    explained = totals.variance_explained
    found = Reconstruction(
        explained,
        totals.active / totals.count,
        share,
        float(metric.double().mean()),
        totals.count,
        tuple(_faults(explained, share)),
        totals.notes,
    )
    return found, metric


def metric_of_reconstruction(view: SplicedBlock) -> Float[Tensor, "pair"]:
    """The metric of each pair with the reconstruction in place of the activation."""

    def value(window: Window) -> Tensor:
        return torch.cat(
            [
                splice_reconstruction(view, pair)[:, window.first : window.end]
                for pair in batch_pairs(window.pair, max_pairs_encoded(view.block, view.sae))
            ]
        )

    return view.measure(torch.arange(len(view), device=view.mask.device), value, "reconstruction")


def splice_reconstruction(
    view: SplicedBlock, pair: Int[Tensor, "n"]
) -> Float[Tensor, "n pos d_out"]:
    """The reconstruction at the chosen positions, the clean activation elsewhere."""
    clean = view.target_activation(pair)
    return torch.where(
        view.mask[pair].unsqueeze(-1), view.codes(pair).reconstruction.to(clean), clean
    )


def _share(above: Tensor, below: Tensor, resamples: Resamples) -> Interval | None:
    """The ratio of means; None where there is nothing to divide by, in the data or in a resample of it."""
    if abs(float(below.mean())) < TINY:
        return None
    found, _ = interval_of_ratio(above, below, resamples)
    return found if math.isfinite(found.low) and math.isfinite(found.high) else None


def _faults(explained: float | None, share: Interval | None) -> Sequence[str]:
    faults = []
    if explained is not None and explained < MIN_VARIANCE_EXPLAINED:
        faults.append(
            f"it explains {explained:.2f} of the variance here (below {MIN_VARIANCE_EXPLAINED})"
        )
    if share is not None and not METRIC_SHARE_BOUNDS[0] <= share.mean <= METRIC_SHARE_BOUNDS[1]:
        faults.append(
            f"{share.mean:.2f} of the metric survives splicing it in (outside {METRIC_SHARE_BOUNDS[0]} to {METRIC_SHARE_BOUNDS[1]})"
        )
    return faults


class _Totals:
    """Sums over positions, in double precision."""

    def __init__(self, d_out: int) -> None:
        self.count, self.active = 0, 0.0
        self.residual, self.square = 0.0, 0.0
        self.sum = torch.zeros(d_out, dtype=torch.float64)
        self._norms: dict[bool, list[float]] = {
            True: [],
            False: [],
        }  # of first positions, and of the others

    def add(self, view: SplicedBlock, part: Tensor) -> None:
        codes, where = view.codes(part), view.mask[part]
        clean = view.target_activation(part).double()
        wanted = clean[where]
        self.count += len(wanted)
        self.active += float((codes.features[where] != 0).sum())
        self.residual += float((wanted - codes.reconstruction[where].double()).square().sum())
        self.square += float(wanted.square().sum())
        self.sum += wanted.sum(0).cpu()
        norms = clean.norm(dim=-1)
        self._norms[True] += norms[:, 0][where[:, 0]].tolist()
        self._norms[False] += norms[:, 1:][where[:, 1:]].tolist()

    @property
    def variance_explained(self) -> float | None:
        variance = self.square - float(self.sum.square().sum()) / self.count
        return 1 - self.residual / variance if variance > 1e-9 * max(self.square, 1e-300) else None

    @property
    def notes(self) -> tuple[str, ...]:
        first, rest = self._norms[True], self._norms[False]
        if (
            not first
            or not rest
            or sum(first) / len(first) < OUTLIER_NORM_RATIO * sum(rest) / len(rest)
        ):
            return ()
        ratio = (sum(first) / len(first)) / max(sum(rest) / len(rest), 1e-300)
        return (
            f"the first position's activation is {ratio:.0f} times as long as the others' and rules these numbers: leave it out",
        )
