"""Does the model use what a probe reads? Remove the direction, and see what is lost.

The activation x at one layer and position becomes x − u·uᵀ(x − μ), in every clean prompt: what lies
along the probe's direction u is set to its mean. A direction along which activations vary a lot
matters more than others whatever it means. So the effect is compared with that of random directions
which are orthogonal to u and remove equal variance. If u has so much variance that there are none,
the activation is moved along random directions by as much instead (`classifier.draw_controls`).

The direction is fitted on some pairs, and its removal is measured on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.engine import Block, Engine, Rows, Window
from discovery.interventions import Edit
from discovery.methods.patching.grid import MIN_METRIC_GAP
from discovery.methods.probes.classifier import ControlKind
from discovery.methods.statistics import Interval, Resamples, interval_of_mean
from discovery.sites import Site

CONTROL_DIRECTIONS = 20


@dataclass(frozen=True, kw_only=True)
class DirectionRemoval:
    """What is lost if the direction of a probe is removed.

    Attributes:
        layer: the layer.
        position: the position, as it was asked for.
        n: the number of pairs, none of which the direction was fitted on.
        change: m(clean) − m(removed), with its 95% interval over pairs.
        effect: the change as a share of m(clean) − m(corrupted); None if that is too small.
        random: the mean change for each random direction.
        control: whether these remove equal variance, or displace the activation equally far.
        p: the share of these directions, the probe's own counted with them, whose absolute mean
            change is at least as large. With 20 it is at least 1/21.
        variance_share: the share of the activations' variance that lies along the direction.
    """

    layer: int
    position: int | str
    n: int
    change: Interval
    effect: float | None
    random: tuple[float, ...]
    control: ControlKind
    p: float
    variance_share: float

    @property
    def is_used(self) -> bool:
        """Whether more is lost than with every, or all but 5% of the, random directions."""
        return self.p <= 0.05 and self.change.low > 0


def remove_directions(
    engine: Engine,
    site: Site,
    positions: Sequence[int | None],
    directions: Float[np.ndarray, "direction d_model"],
    reads: Float[np.ndarray, "direction d_model"],
    mean: Float[np.ndarray, "d_model"],
) -> Float[Tensor, "direction pair"]:
    """Measure the metric of each clean prompt with each direction removed at one position.

    Args:
        engine: the model and the pairs.
        site: the activation.
        positions: the position of each pair; NaN is returned for a pair that has None.
        directions: unit vectors v.
        reads: for each, the vector r of x − v·rᵀ(x − μ); v itself if what lies along it is removed.
        mean: μ, what the activation is set to along a direction.
    """
    info = engine.backend.info
    dtype = getattr(torch, info.dtype)
    units = torch.as_tensor(directions, dtype=dtype, device=engine.backend.device)
    read_by = torch.as_tensor(reads, dtype=dtype, device=engine.backend.device)
    center = torch.as_tensor(mean, dtype=dtype, device=engine.backend.device)
    result = torch.full((len(units), len(engine)), float("nan"), dtype=torch.float64)
    for first, block in engine.blocks():
        own = positions[first : first + len(block.prompts)]
        known = [number for number, at in enumerate(own) if at is not None]
        if not known:
            continue
        pair = torch.tensor(known, device=engine.backend.device)
        place = torch.tensor([own[number] for number in known], device=engine.backend.device)
        rows = _rows(block, site, pair, place, units, read_by, center)
        label = engine.block_label("removing directions", first, block)
        block.meter.begin(label, block.estimate(rows))
        metric = block.measure(rows).double().cpu().reshape(len(units), len(known))
        result[:, torch.tensor(known) + first] = metric
    return result


def _rows(
    block: Block,
    site: Site,
    pair: Int[Tensor, "pair"],
    place: Int[Tensor, "pair"],
    units: Float[Tensor, "direction d_model"],
    reads: Float[Tensor, "direction d_model"],
    center: Float[Tensor, "d_model"],
) -> Rows:
    """Return one row for each direction and pair, direction by direction."""
    n = len(pair)
    position = place.repeat(len(units))

    def edits(window: Window) -> list[Edit]:
        activation = block.activation("clean", site)[window.pair, window.first : window.end]
        number = window.index // n
        unit = units[number].unsqueeze(1)  # [row 1 d_model]
        along = ((activation - center) * reads[number].unsqueeze(1)).sum(-1, keepdim=True)
        span = torch.arange(window.first, window.end, device=position.device)
        where = span == position[window.index].unsqueeze(1)
        return [Edit(site=site, value=activation - along * unit, where=where)]

    return Rows(
        base="clean",
        pair=pair.repeat(len(units)),
        first=position,
        start=site.layer,
        edits=edits,
    )


def summarise_removal(
    engine: Engine,
    removed: Float[Tensor, "direction pair"],
    layer: int,
    position: int | str,
    variance_share: float,
    control: ControlKind,
) -> DirectionRemoval:
    """Return what is lost; the first direction is the probe's, the others are random.

    Every pair of the engine must have been measured.
    """
    clean = engine.baseline("clean").double().cpu()
    gap = float((clean - engine.baseline("corrupted").double().cpu()).mean())
    changes = clean - removed
    own, *others = changes.mean(1).tolist()
    as_large = sum(abs(other) >= abs(own) for other in others)
    return DirectionRemoval(
        layer=layer,
        position=position,
        n=len(engine),
        change=interval_of_mean(changes[0], Resamples.of(engine.task)),
        effect=own / gap if abs(gap) >= MIN_METRIC_GAP else None,
        random=tuple(others),
        control=control,
        p=(1 + as_large) / (1 + len(others)),
        variance_share=variance_share,
    )
