"""What changing features does to the metric: ablate (set to 0), clamp (set), scale, or steer (add).

If the error term is kept, the activation is moved by s · Σ (z' − z) d, so a change of nothing
leaves every logit as it was. If it is dropped, the SAE's reconstruction replaces the activation,
with the features changed in it. The effect then counts from the unchanged reconstruction, so that
it is the effect of the features and not of the reconstruction.

    from discovery.methods.features import edit_features
    edit_features(model, task, sae, {1234: 0.0}, positions=["end"]).effect         # ablation
    edit_features(model, task, sae, {1234: 8.0}, operation="add").effect           # steering
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend
from discovery.engine import Meter
from discovery.engine.cost import MeasurementCost
from discovery.errors import NotFiniteError, require_choice
from discovery.features import SAE, ErrorTerm, FeatureChange, Operation, open_sae
from discovery.methods.arguments import (
    Positions,
    require_counts,
)
from discovery.methods.features.pushes import ShuffledDecoderControl, draw_other_directions, push
from discovery.methods.features.reconstruction import (
    MIN_GAP,
    Reconstruction,
    measure_reconstruction,
    splice_reconstruction,
)
from discovery.methods.features.splice import SplicedTask
from discovery.methods.statistics import Interval, interval_of_mean
from discovery.methods.subject import TaskLike, resolve_task
from discovery.progress import ProgressCallback
from discovery.sites import MetricName


@dataclass(frozen=True, kw_only=True)
class FeatureEditResult:
    """What a change of features does to the metric.

    Attributes:
        reconstruction: how well the SAE reconstructs these activations.
        warnings: what to know first; a poor reconstruction stands at the beginning.
        change: the features and their amounts.
        error: whether the error term was kept or dropped.
        metric: the metric's name.
        metric_clean: its mean in the clean runs.
        metric_base: its mean in the runs that the effect counts from.
        metric_edited: its mean with the features changed.
        effect: m(edited) − m(base), mean over pairs with its 95% interval.
        share: the effect as a share of m(clean) − m(corrupted); None if that difference is 0.
        per_pair: the metric of each pair with the features changed.
        per_pair_base: the metric that the effect counts from: of the clean run (error kept) or of
            the reconstruction (error dropped).
        control: the same change along the directions of other features; None if there are none.
        cost: the work done.
    """

    reconstruction: Reconstruction
    warnings: tuple[str, ...]
    change: FeatureChange
    error: ErrorTerm
    metric: MetricName
    metric_clean: float
    metric_base: float
    metric_edited: float
    effect: Interval
    share: float | None
    per_pair: Float[Tensor, "pair"]
    per_pair_base: Float[Tensor, "pair"]
    control: ShuffledDecoderControl | None
    cost: MeasurementCost


def edit_features(
    model: Backend,
    task: TaskLike,
    sae: SAE | str | Path | None,
    features: Mapping[int, float],
    *,
    operation: Operation = "set",
    positions: Positions = None,
    error: ErrorTerm = "keep",
    controls: int = 8,
    seed: int = 0,
    metric: MetricName | None = None,
    memory: int | None = None,
    progress: ProgressCallback | None = None,
) -> FeatureEditResult:
    """Change features together in the clean prompt of every pair, and measure the metric.

    Args:
        task: as in `sae_top_features`.
        sae: as in `sae_top_features`.
        features: for each feature its amount, in units of its activation (for the operation
            "scale" a factor). {f: 0.0} ablates the feature f.
        operation: set to the amount, scale by it, or add it.
        error: keep what the SAE does not reconstruct, or drop it.
        controls: draws of the shuffled-decoder control.

    Raises:
        FeatureError: if the SAE does not fit or lacks a feature, and if an amount is not finite or
            so large that the logits are not finite.
        MeasurementError: for unknown choices, and if a pair has none of the positions.
    """
    started = time.monotonic()
    require_choice("error", error, get_args(ErrorTerm))
    require_counts(controls=(controls, 0))
    sae = open_sae(sae, model)
    task = resolve_task(task, model, seed)
    change = FeatureChange.of(features, operation, sae.d_sae)
    meter = Meter(progress=progress)
    spliced = SplicedTask.of(
        model, task, sae, positions, meter, metric=metric, memory=memory, seed=seed
    )
    clean = spliced.engine.baseline("clean")
    corrupted = spliced.engine.baseline("corrupted")
    reconstruction, reconstructed_metric = measure_reconstruction(spliced, corrupted)
    base = clean if error == "keep" else reconstructed_metric
    other_directions = draw_other_directions(sae, change.features, controls, seed)
    try:
        metrics = _metrics_with_draws(spliced, change, error, other_directions)
    except NotFiniteError:  # the unchanged prompts gave finite numbers
        raise change.too_large_error() from None
    effect, *drawn_effects = (metrics - base).double().mean(1).tolist()
    gap = float((clean - corrupted).double().mean())
    return FeatureEditResult(
        reconstruction=reconstruction,
        warnings=(*reconstruction.warnings, *sae.warnings),
        change=change,
        error=error,
        metric=spliced.engine.metric,
        metric_clean=float(clean.double().mean()),
        metric_base=float(base.double().mean()),
        metric_edited=float(metrics[0].double().mean()),
        effect=interval_of_mean(metrics[0] - base, spliced.resamples),
        share=effect / gap if abs(gap) >= MIN_GAP else None,
        per_pair=metrics[0],
        per_pair_base=base,
        control=ShuffledDecoderControl.of(effect, drawn_effects) if drawn_effects else None,
        cost=MeasurementCost(meter.spent, time.monotonic() - started),
    )


def _metrics_with_draws(
    spliced: SplicedTask,
    change: FeatureChange,
    error: ErrorTerm,
    other_directions: Float[Tensor, "draw changed d_out"],
) -> Float[Tensor, "case pair"]:
    """Measure the metric with the change, and then with it along the directions of each draw."""
    numbers = list(change.features)
    directions = torch.cat([spliced.sae.directions(numbers).unsqueeze(0), other_directions])
    metrics = []
    for view in spliced.blocks():
        amounts = []
        for pairs in view.pair_batches():
            codes = view.codes(pairs)
            moved = change.difference(codes.features[..., numbers]) * codes.scale
            amounts.append(torch.where(view.mask[pairs].unsqueeze(-1), moved, 0.0))
        amount = torch.cat(amounts).unsqueeze(0).expand(len(directions), -1, -1, -1)
        base = None
        if error == "drop":
            base = partial(splice_reconstruction, view)
        metrics.append(push(view, amount, directions, base, "changed features"))
    return torch.cat(metrics, 1)
