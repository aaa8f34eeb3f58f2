"""How well an SAE reconstructs the activations of these prompts.

If the reconstruction is poor, no feature of the SAE explains much here. Three numbers describe it:

    variance explained    1 − Σ |x − x̂|² / Σ |x − mean x|², over the chosen positions; the mean is
                          taken over the same positions
    L0                    features that are not 0 at a position, mean over the positions
    share of the metric   with x̂ in place of x at these positions:
                          (m(x̂) − m(corrupted)) / (m(clean) − m(corrupted));
                          for a single prompt m(x̂) / m(clean)

A reconstruction is poor if it explains less than 0.7 of the variance, or if the share lies outside
0.7 to 1.3. These thresholds are our own. Good SAEs of the literature explain 0.8 and more and keep
over 0.9 of the loss on their training text (Gao et al. 2024, arXiv 2406.04093; Karvonen et al.
2025, arXiv 2503.09532), but the prompts of a task are harder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.engine import Window
from discovery.features.sae import OUTLIER_NORM_RATIO
from discovery.methods.features.splice import (
    SplicedBlock,
    SplicedTask,
    batch_pairs,
    max_pairs_encoded,
)
from discovery.methods.statistics import Interval, Resamples, interval_of_ratio

MIN_VARIANCE_EXPLAINED = 0.7
METRIC_SHARE_BOUNDS = (0.7, 1.3)
MIN_GAP = 1e-6  # a mean difference of the metric below this cannot be divided by
MIN_RELATIVE_VARIANCE = 1e-9  # below this all positions have the same activation


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """How well the SAE reconstructs these prompts.

    Attributes:
        variance_explained: None if all positions have the same activation.
        l0: features that are not 0 at a position, mean over the positions.
        share: share of the metric that survives; None if there is nothing to divide by.
        metric_spliced: mean metric with x̂ in place of x.
        n_positions: number of positions that were measured.
        poor: one text for each measure outside its threshold, with its numbers. It is empty if the
            reconstruction is good enough.
        notes: what may be misleading about these numbers.
    """

    variance_explained: float | None
    l0: float
    share: Interval | None
    metric_spliced: float
    n_positions: int
    poor: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the user: first that the reconstruction is poor, then the notes."""
        poor = [
            f"POOR RECONSTRUCTION: {fault}; its features explain little here" for fault in self.poor
        ]
        return (*poor, *self.notes)


def measure_reconstruction(
    spliced: SplicedTask, base: Float[Tensor, "pair"]
) -> tuple[Reconstruction, Float[Tensor, "pair"]]:
    """Measure the SAE's reconstruction of all pairs.

    Args:
        base: the metric that the share counts from: m(corrupted) of each pair, or 0.

    Returns:
        The measurement, and the metric of each pair with the reconstruction in place of the
        activation.
    """
    totals = _Totals(spliced.sae.d_out)
    metrics = []
    for view in spliced.blocks():
        for pairs in view.pair_batches():
            totals.add(view, pairs)
        metrics.append(metric_of_reconstruction(view))
    metric = torch.cat(metrics)
    clean = spliced.engine.baseline("clean")
    share = _share((metric - base).double(), (clean - base).double(), spliced.resamples)
    explained = totals.variance_explained
    reconstruction = Reconstruction(
        variance_explained=explained,
        l0=totals.active / totals.count,
        share=share,
        metric_spliced=float(metric.double().mean()),
        n_positions=totals.count,
        poor=tuple(_faults(explained, share)),
        notes=totals.notes,
    )
    return reconstruction, metric


def metric_of_reconstruction(view: SplicedBlock) -> Float[Tensor, "pair"]:
    """Measure the metric of each pair with the reconstruction in place of the activation."""
    size = max_pairs_encoded(view.block, view.sae)

    def value(window: Window) -> Tensor:
        return torch.cat(
            [
                splice_reconstruction(view, pairs)[:, window.first : window.end]
                for pairs in batch_pairs(window.pair, size)
            ]
        )

    return view.measure(view.all_pairs, value, "reconstruction")


def splice_reconstruction(
    view: SplicedBlock, pair: Int[Tensor, "n"]
) -> Float[Tensor, "n pos d_out"]:
    """Return the reconstruction at the chosen positions, and the clean activation elsewhere."""
    clean = view.target_activation(pair)
    mask = view.mask[pair].unsqueeze(-1)
    return torch.where(mask, view.codes(pair).reconstruction.to(clean), clean)


def _share(spliced: Tensor, clean: Tensor, resamples: Resamples) -> Interval | None:
    """Return the ratio of means, or None if a denominator is 0, in the data or in a resample."""
    if abs(float(clean.mean())) < MIN_GAP:
        return None
    share, _ = interval_of_ratio(spliced, clean, resamples)
    return share if math.isfinite(share.low) and math.isfinite(share.high) else None


def _faults(explained: float | None, share: Interval | None) -> Sequence[str]:
    low, high = METRIC_SHARE_BOUNDS
    faults = []
    if explained is not None and explained < MIN_VARIANCE_EXPLAINED:
        faults.append(
            f"the SAE explains {explained:.2f} of the variance here "
            f"(below {MIN_VARIANCE_EXPLAINED})"
        )
    if share is not None and not low <= share.mean <= high:
        faults.append(
            f"with its reconstruction in place of the activation, {share.mean:.2f} of the metric "
            f"survives (outside {low} to {high})"
        )
    return faults


class _Totals:
    """Sums over the chosen positions, in double precision."""

    def __init__(self, d_out: int) -> None:
        self.count = 0
        self.active = 0.0
        self.residual = 0.0
        self.square = 0.0
        self.sum = torch.zeros(d_out, dtype=torch.float64)
        self._first_norms: list[float] = []
        self._other_norms: list[float] = []

    def add(self, view: SplicedBlock, pairs: Tensor) -> None:
        codes = view.codes(pairs)
        mask = view.mask[pairs]
        clean = view.target_activation(pairs).double()
        x = clean[mask]
        self.count += len(x)
        self.active += float((codes.features[mask] != 0).sum())
        self.residual += float((x - codes.reconstruction[mask].double()).square().sum())
        self.square += float(x.square().sum())
        self.sum += x.sum(0).cpu()
        norms = clean.norm(dim=-1)
        self._first_norms += norms[:, 0][mask[:, 0]].tolist()
        self._other_norms += norms[:, 1:][mask[:, 1:]].tolist()

    @property
    def variance_explained(self) -> float | None:
        variance = self.square - float(self.sum.square().sum()) / self.count
        if variance > MIN_RELATIVE_VARIANCE * max(self.square, 1e-300):
            return 1 - self.residual / variance
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """A note if the first position's activation is so long that it dominates every sum."""
        first = self._first_norms
        others = self._other_norms
        if not first or not others:
            return ()
        first_mean = sum(first) / len(first)
        if first_mean < OUTLIER_NORM_RATIO * sum(others) / len(others):
            return ()
        ratio = first_mean / max(sum(others) / len(others), 1e-300)
        return (
            f"the first position's activation is {ratio:.0f} times as long as the others' and "
            "dominates these numbers: leave it out",
        )
