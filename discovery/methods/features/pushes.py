"""Exact effects: features moved along their decoder directions, and the shuffled-decoder control.

The control moves the activation just as far along the directions of other features, drawn at random: what any push of this size
does to the metric is no effect of the feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.engine import Side, Window
from discovery.features import SAE
from discovery.methods.features.splice import SplicedBlock

MAX_CONTROL_PAIRS = 32  # on which the control is drawn


@dataclass(frozen=True)
class ShuffledDecoderControl:
    """The same pushes along other features' directions.

    Attributes:
        n: draws. mean_absolute: mean of |effect| over the draws. largest: the largest |effect|.
        as_large: draws whose |effect| is at least the feature's own, or no number. p: (1 + as_large) / (1 + n).
    """

    n: int
    mean_absolute: float
    largest: float
    as_large: int
    p: float

    @classmethod
    def of(cls, own: float, draws: Sequence[float]) -> ShuffledDecoderControl:
        """Compare an effect with those of the draws."""
        sizes = [abs(draw) for draw in draws]
        as_large = sum(
            not size < abs(own) * (1 - 1e-6) for size in sizes
        )  # what is no number speaks against the feature
        return cls(
            len(sizes),
            sum(sizes) / len(sizes),
            max(sizes),
            as_large,
            (1 + as_large) / (1 + len(sizes)),
        )


def push(
    view: SplicedBlock,
    amount: Float[Tensor, "case pair pos changed"],
    directions: Float[Tensor, "case changed d_out"],
    base: Callable[[Int[Tensor, "n"]], Float[Tensor, "n pos d_out"]] | None = None,
    label: str = "feature ablation",
    side: Side = "clean",
) -> Float[Tensor, "case pair"]:
    """The metric with the site moved, in several ways.

    Args:
        amount: how far along each direction, the dictionary's scale included; 0 outside the chosen positions.
        base: what is moved; the activation of `side` where None, and pairs that are not moved are then not run.
    """
    count = len(view)
    result = view.block.baseline(side)[:count].repeat(len(amount), 1)
    moved = (
        (amount != 0).flatten(2).any(2)
        if base is None
        else torch.ones_like(result, dtype=torch.bool)
    )
    case, pair = moved[:, :count].nonzero(as_tuple=True)
    if not len(case):
        return result

    def value(window: Window) -> Tensor:
        here = view.target_activation(window.pair, side) if base is None else base(window.pair)
        chosen = case[window.index]
        change = torch.bmm(amount[chosen, window.pair], directions[chosen]).to(
            here
        )  # [n pos d_out]
        return (here + change)[:, window.first : window.end]

    result[case, pair] = view.measure(pair, value, label, side)
    return result


def measure_controls(
    view: SplicedBlock,
    features: Sequence[int],
    amount: Float[Tensor, "pair pos k"],
    own: Float[Tensor, "pair k"],
    draws: int,
    seed: int,
) -> list[ShuffledDecoderControl | None]:
    """The shuffled-decoder control of each feature, on a block's first pairs; None where there are no draws.

    Args:
        amount: how far each feature is moved along its own direction. own: what that does, m(clean) − m(moved).
    """
    count, clean = min(MAX_CONTROL_PAIRS, len(view)), view.block.baseline("clean")
    found: list[ShuffledDecoderControl | None] = []
    for i, feature in enumerate(features):
        directions = draw_other_directions(view.sae, [feature], draws, seed + feature)
        if not len(directions):
            found.append(None)
            continue
        moved = torch.zeros_like(amount[..., i])
        moved[:count] = amount[:count, :, i]
        pushed = push(
            view,
            moved[None, :, :, None].expand(len(directions), -1, -1, 1),
            directions,
            label="shuffled decoder",
        )
        effects = (clean - pushed)[:, :count].double().mean(1).tolist()
        found.append(ShuffledDecoderControl.of(float(own[:count, i].double().mean()), effects))
    return found


def draw_other_directions(
    sae: SAE, features: Sequence[int], draws: int, seed: int
) -> Float[Tensor, "draw changed d_out"]:
    """For each draw, the directions of as many other features, made as long as those of `features`.

    Returns:
        No draws where there are no other features.
    """
    others = torch.tensor([f for f in range(sae.d_sae) if f not in set(features)])
    own = sae.directions(features)
    if not len(others) or not draws:
        return own.new_zeros(0, *own.shape)
    generator = torch.Generator().manual_seed(seed)
    picked = [
        others[torch.randint(len(others), (len(features),), generator=generator)].tolist()
        for _ in range(draws)
    ]
    if len(others) >= len(features):
        picked = [
            others[torch.randperm(len(others), generator=generator)[: len(features)]].tolist()
            for _ in range(draws)
        ]
    found = torch.stack([sae.directions(chosen) for chosen in picked])
    length: Tensor = own.norm(dim=-1, keepdim=True) / found.norm(dim=-1, keepdim=True).clamp(
        min=1e-12
    )
    return found * length
