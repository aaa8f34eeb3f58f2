"""What changing features does to the metric: ablate (set to 0), clamp (set to a value), scale, or steer (add).

Error term kept: the activation is moved by s · Σ (z' − z) d, and nothing changed leaves every logit as it was. Dropped: the dictionary's
reconstruction stands in for the activation, with the features changed in it; the effect is then counted from the unchanged reconstruction,
so that it is the features' and not the dictionary's.

    from discovery.methods.features import edit_features
    edit_features(model, task, sae, {1234: 0.0}, positions=["end"]).effect         # ablation
    edit_features(model, task, sae, {1234: 8.0}, operation="add").effect           # steering
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend
from discovery.engine import Engine, Meter
from discovery.engine.cost import MeasurementCost
from discovery.errors import MeasurementError, NotFiniteError
from discovery.features import SAE, ErrorTerm, FeatureChange, Operation, open_sae
from discovery.methods.features.arguments import (
    PairPositions,
    Positions,
    TaskLike,
    require_counts,
    resolve_positions,
    resolve_task,
)
from discovery.methods.features.pushes import ShuffledDecoderControl, draw_other_directions, push
from discovery.methods.features.reconstruction import (
    Reconstruction,
    measure_reconstruction,
    splice_reconstruction,
)
from discovery.methods.features.splice import cache_sites, spliced_blocks
from discovery.methods.statistics import Interval, Resamples, interval_of_mean
from discovery.progress import ProgressCallback
from discovery.sites import MetricName


@dataclass(frozen=True)
class FeatureEditResult:
    """What a change of features does.

    Attributes:
        effect: m(edited) − m(base), mean over pairs with its 95% interval. share: of m(clean) − m(corrupted); None where that is 0.
        per_pair: metric with the features changed, [pair]; per_pair_base what it is counted from: the clean run (error kept) or the
            reconstruction (dropped).
        control: the same change along other features' directions; None where there are none.
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
    """Change features together in every pair's clean prompt.

    Args:
        task, sae: as in `sae_top_features`.
        features: feature -> amount, in units of its activation (operation "scale": a factor). {f: 0.0} ablates.
        operation: set, scale or add.
        error: keep what the dictionary does not explain, or drop it.
        controls: draws of the shuffled-decoder control.

    Raises:
        FeatureError: an SAE that does not fit, a feature it does not have, or an amount that is no finite number or so large that no
            logits are left.
        MeasurementError: unknown choices, or positions that a pair lacks.
    """
    began = time.monotonic()
    if error not in get_args(ErrorTerm):
        raise MeasurementError(
            f"error {error!r} is not known.", f"Allowed: {', '.join(get_args(ErrorTerm))}."
        )
    require_counts(controls=(controls, 0))
    sae = open_sae(sae, model)
    task = resolve_task(task, model, seed)
    change = FeatureChange.of(features, operation, sae.d_sae)
    engine = Engine(model, task, metric=metric, memory=memory, meter=Meter(progress=progress))
    places = resolve_positions(task, positions)
    resamples = Resamples.of(task, seed=seed)
    cache_sites(engine, sae)
    clean, corrupted = engine.baseline("clean"), engine.baseline("corrupted")
    found, rebuilt_metric = measure_reconstruction(engine, sae, places, corrupted, resamples)
    base = clean if error == "keep" else rebuilt_metric
    try:
        metrics = _cases(
            engine,
            sae,
            places,
            change,
            error,
            draw_other_directions(sae, change.features, controls, seed),
        )
    except NotFiniteError:  # the unchanged prompts gave numbers
        raise change.too_large_error() from None
    effects = (metrics - base).double().mean(1)
    gap = float((clean - corrupted).double().mean())
    warnings = [f"POOR RECONSTRUCTION: {fault}" for fault in found.poor] + [
        *found.notes,
        *sae.warnings,
    ]
    return FeatureEditResult(
        found,
        tuple(warnings),
        change,
        error,
        engine.metric,
        float(clean.double().mean()),
        float(base.double().mean()),
        float(metrics[0].double().mean()),
        interval_of_mean(metrics[0] - base, resamples),
        float(effects[0]) / gap if abs(gap) >= 1e-6 else None,
        metrics[0],
        base,
        ShuffledDecoderControl.of(float(effects[0]), effects[1:].tolist())
        if len(effects) > 1
        else None,
        MeasurementCost(engine.meter.spent, time.monotonic() - began),
    )


def _cases(
    engine: Engine,
    sae: SAE,
    places: PairPositions,
    change: FeatureChange,
    error: ErrorTerm,
    others: Float[Tensor, "draw changed d_out"],
) -> Float[Tensor, "case pair"]:
    """The metric with the change itself, then with the change along each draw's directions."""
    chosen = list(change.features)
    directions = torch.cat([sae.directions(chosen).unsqueeze(0), others])
    parts = []
    for view in spliced_blocks(engine, sae, places):
        amounts = []
        for part in view.pair_batches():
            codes = view.codes(part)
            moved = change.difference(codes.features[..., chosen]) * codes.scale
            amounts.append(torch.where(view.mask[part].unsqueeze(-1), moved, 0.0))
        amount = torch.cat(amounts).unsqueeze(0).expand(len(directions), -1, -1, -1)
        base = (
            None if error == "keep" else lambda pair, view=view: splice_reconstruction(view, pair)
        )
        parts.append(push(view, amount, directions, base, "changed features"))
    return torch.cat(parts, 1)
