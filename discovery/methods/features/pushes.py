"""Exact effects of features: the metric after a push along decoder directions, and a control.

A push adds an amount of a feature's decoder direction to the activation at the SAE's site.
Ablating, exchanging and steering a feature are all pushes.

The shuffled-decoder control pushes just as far along the decoder directions of other features,
which are drawn at random. If such pushes change the metric as much, the effect is that of any push
of this size, and not of the feature.
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

MAX_CONTROL_PAIRS = 32  # the control is measured on at most this many pairs


@dataclass(frozen=True, kw_only=True)
class ShuffledDecoderControl:
    """Effects of the same pushes along the directions of other features.

    Attributes:
        n: number of draws.
        mean_absolute: mean of |effect| over the draws.
        largest: the largest |effect|.
        as_large: draws whose |effect| is at least the feature's own, or NaN.
        p: (1 + as_large) / (1 + n).
    """

    n: int
    mean_absolute: float
    largest: float
    as_large: int
    p: float

    @classmethod
    def of(cls, effect: float, draws: Sequence[float]) -> ShuffledDecoderControl:
        """Compare a feature's effect with the effects of the draws.

        Effects are compared by size, up to a relative 1e-6. A comparison with NaN counts as a draw
        that is as large, so that it speaks against the feature.
        """
        sizes = [abs(draw) for draw in draws]
        as_large = sum(not size < abs(effect) * (1 - 1e-6) for size in sizes)
        return cls(
            n=len(sizes),
            mean_absolute=sum(sizes) / len(sizes),
            largest=max(sizes),
            as_large=as_large,
            p=(1 + as_large) / (1 + len(sizes)),
        )


def one_case_each(amount: Float[Tensor, "pair pos k"]) -> Float[Tensor, "k pair pos 1"]:
    """Arrange the amounts of k features as k cases for `push`, one for each feature."""
    return amount.permute(2, 0, 1).unsqueeze(-1)


def push(
    view: SplicedBlock,
    amount: Float[Tensor, "case pair pos changed"],
    directions: Float[Tensor, "case changed d_out"],
    base: Callable[[Int[Tensor, "n"]], Float[Tensor, "n pos d_out"]] | None = None,
    label: str = "feature ablation",
    side: Side = "clean",
) -> Float[Tensor, "case pair"]:
    """Measure the metric after pushing the activation of every pair, in several ways.

    Args:
        amount: how far the activation is pushed along each direction, with the SAE's scale
        included;
            0 outside the mask.
        directions: the directions of each case. base: computes what is pushed, for these pairs. The
        default is the activation of `side`; pairs
            that are not pushed are then not run.
        label: the step that progress reports name.
        side: the run that is changed.
    """
    count = len(view)
    metric = view.block.baseline(side)[:count].repeat(len(amount), 1)
    if base is None:
        is_pushed = (amount != 0).flatten(2).any(2)
    else:
        is_pushed = torch.ones_like(metric, dtype=torch.bool)
    case, pair = is_pushed[:, :count].nonzero(as_tuple=True)
    if not len(case):
        return metric

    def value(window: Window) -> Tensor:
        here = view.target_activation(window.pair, side) if base is None else base(window.pair)
        cases = case[window.index]
        change = torch.bmm(amount[cases, window.pair], directions[cases]).to(here)  # [n pos d_out]
        return (here + change)[:, window.first : window.end]

    metric[case, pair] = view.measure(pair, value, label, side)
    return metric


def measure_controls(
    view: SplicedBlock,
    features: Sequence[int],
    amount: Float[Tensor, "pair pos k"],
    effects: Float[Tensor, "pair k"],
    draws: int,
    seed: int,
) -> list[ShuffledDecoderControl | None]:
    """Measure the shuffled-decoder control of each feature on the first pairs of a block.

    Args:
        amount: how far each feature's push goes along its own direction.
        effects: what that push does, m(clean) − m(pushed).
        draws: draws for each feature.

    Returns:
        For each feature its control; None if there are no draws.
    """
    count = min(MAX_CONTROL_PAIRS, len(view))
    clean = view.block.baseline("clean")
    controls: list[ShuffledDecoderControl | None] = []
    for i, feature in enumerate(features):
        directions = draw_other_directions(view.sae, [feature], draws, seed + feature)
        if not len(directions):
            controls.append(None)
            continue
        limited = torch.zeros_like(amount[..., i])
        limited[:count] = amount[:count, :, i]
        cases = limited[None, :, :, None].expand(len(directions), -1, -1, 1)
        pushed = push(view, cases, directions, label="shuffled decoder")
        control_effects = (clean - pushed)[:, :count].double().mean(1).tolist()
        own = float(effects[:count, i].double().mean())
        controls.append(ShuffledDecoderControl.of(own, control_effects))
    return controls


def draw_other_directions(
    sae: SAE, features: Sequence[int], draws: int, seed: int
) -> Float[Tensor, "draw changed d_out"]:
    """Draw directions of other features, scaled to the lengths of those of `features`.

    Returns:
        For each draw, as many directions as there are `features`. There are no draws if the SAE has
        no other features.
    """
    others = torch.tensor([f for f in range(sae.d_sae) if f not in set(features)])
    own = sae.directions(features)
    if not len(others) or not draws:
        return own.new_zeros(0, *own.shape)
    generator = torch.Generator().manual_seed(seed)
    drawn_features = [
        others[torch.randint(len(others), (len(features),), generator=generator)].tolist()
        for _ in range(draws)
    ]
    if len(others) >= len(features):  # enough for draws without repetition
        drawn_features = [
            others[torch.randperm(len(others), generator=generator)[: len(features)]].tolist()
            for _ in range(draws)
        ]
    other_directions = torch.stack([sae.directions(numbers) for numbers in drawn_features])
    drawn_length = other_directions.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    ratio: Tensor = own.norm(dim=-1, keepdim=True) / drawn_length
    return other_directions * ratio
