"""Features exchanged between the clean and the corrupted run: what nodes of a circuit record are found and verified by.

With c = s · z what a feature adds along its direction d, at the chosen positions (the sides of a pair have equally many tokens),

    attribution   Σ (c_clean − c_corrupted) · <∂m/∂x, d>: to first order what its exchange does (Marks et al. 2024, arXiv 2403.19647)
    noising       m(clean) − m(x + (c_corrupted − c_clean) d): exactly, in the clean run
    denoising     m(x' + (c_clean − c_corrupted) d) − m(corrupted): exactly, in the corrupted run x'
    removal       m(clean) − m(x − c_clean d): exactly, the feature set to 0

The error term and all other features stay as they are in the run that is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from discovery.engine import Engine, Side
from discovery.features import SAE
from discovery.methods.features.arguments import PairPositions
from discovery.methods.features.attribution import mean_gradient, scale_features
from discovery.methods.features.direct_logits import DirectLogitEffect, measure_direct_logits
from discovery.methods.features.firing import TokenFiring, find_firing_tokens, peak_activations
from discovery.methods.features.pushes import ShuffledDecoderControl, measure_controls, push
from discovery.methods.features.splice import SplicedBlock, spliced_blocks


@dataclass(frozen=True)
class AttributionRanking:
    """Features that attribution put first.

    Attributes:
        features: the largest absolute mean first. per_pair: their attribution, m(clean) − m(exchanged) to first order.
    """

    features: tuple[int, ...]
    per_pair: Float[Tensor, "pair k"]


@dataclass(frozen=True)
class ExchangeMeasurement:
    """What exchanging chosen features does, exactly: metrics [pair k], nothing subtracted.

    Attributes:
        noised, removed: of the clean run with the feature as in the corrupted run, and at 0. denoised: of the corrupted run with it as in
            the clean run.
        activation: the largest of each pair in the clean run, [pair k].
        controls: noising against the same push along other features' directions.
    """

    noised: Float[Tensor, "pair k"]
    denoised: Float[Tensor, "pair k"]
    removed: Float[Tensor, "pair k"]
    activation: Float[Tensor, "pair k"]
    controls: tuple[ShuffledDecoderControl | None, ...]
    tokens: tuple[tuple[TokenFiring, ...], ...]
    direct: tuple[DirectLogitEffect, ...]


def contributions(
    view: SplicedBlock,
    features: Sequence[int],
    side: Side,
    shift: Float[Tensor, "pair pos ..."] | None = None,
) -> tuple[Float[Tensor, "pair pos k"], Float[Tensor, "pair pos k"]]:
    """z and c of these features in a run, 0 outside the chosen positions; `shift` is added to what the dictionary reads."""
    z, c = [], []
    for part in view.pair_batches():
        codes = view.codes(part, side, shift)
        z.append(codes.features[..., list(features)] * view.mask[part].unsqueeze(-1))
        c.append(z[-1] * codes.scale)
    return torch.cat(z), torch.cat(c)


def rank_by_attribution(
    engine: Engine, sae: SAE, places: PairPositions, steps: int, k: int
) -> AttributionRanking:
    """The features whose exchange does most, to first order."""
    gradients, total = {}, torch.zeros(sae.d_sae, dtype=torch.float64)
    for view in spliced_blocks(engine, sae, places):
        gradient = gradients[view.first_pair] = mean_gradient(view, steps, "corrupted")
        for part in view.pair_batches():
            change = _change(view, part)
            total += (
                (change * (gradient[part.cpu()].to(change) @ sae.directions().T))
                .sum((0, 1))
                .double()
                .cpu()
            )
    best = total.abs().topk(min(k, sae.d_sae))
    chosen = tuple(
        feature
        for feature, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        if value > 0
    )
    per_pair = []
    for view in spliced_blocks(engine, sae, places):
        for part in view.pair_batches():
            change = _change(view, part)[..., list(chosen)]
            slope = gradients[view.first_pair][part.cpu()].to(change) @ sae.directions(chosen).T
            per_pair.append((change * slope).sum(1))
    return AttributionRanking(chosen, torch.cat(per_pair))


def _change(view: SplicedBlock, part: Tensor) -> Float[Tensor, "n pos feature"]:
    """c_clean − c_corrupted of every feature, 0 outside the chosen positions."""
    return (
        scale_features(view.codes(part)) - scale_features(view.codes(part, "corrupted"))
    ) * view.mask[part].unsqueeze(-1)


def measure_exchange(
    engine: Engine,
    sae: SAE,
    places: PairPositions,
    features: Sequence[int],
    draws: int,
    seed: int,
    top: int,
) -> ExchangeMeasurement:
    """Exchange each feature alone, in every pair and both directions."""
    directions = sae.directions(features).unsqueeze(1)
    parts: dict[str, list[Tensor]] = {"noised": [], "denoised": [], "removed": [], "activation": []}
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    controls: list[ShuffledDecoderControl | None] = []
    direct: tuple[DirectLogitEffect, ...] = ()
    for view in spliced_blocks(engine, sae, places):
        z, clean = contributions(view, features, "clean")
        _, corrupted = contributions(view, features, "corrupted")
        change = corrupted - clean
        parts["noised"].append(push(view, _cases(change), directions, label="feature noising").T)
        parts["denoised"].append(
            push(view, _cases(-change), directions, label="feature denoising", side="corrupted").T
        )
        parts["removed"].append(push(view, _cases(-clean), directions, label="feature removal").T)
        parts["activation"].append(peak_activations(z))
        seen.append((view.block.prompts.clean, view.mask, z))
        if len(seen) == 1:
            own = view.block.baseline("clean").unsqueeze(1) - parts["noised"][0]
            controls = measure_controls(view, features, change, own, draws, seed)
            direct = measure_direct_logits(view.block, sae, features, top)
    joined = {name: torch.cat(rows) for name, rows in parts.items()}
    return ExchangeMeasurement(
        **joined,
        controls=tuple(controls),
        tokens=_tokens(engine, seen, len(features)),
        direct=direct,
    )


def _cases(amount: Float[Tensor, "pair pos k"]) -> Float[Tensor, "k pair pos 1"]:
    """One case for each feature."""
    return amount.permute(2, 0, 1).unsqueeze(-1)


def _tokens(
    engine: Engine, seen: Sequence[tuple[Tensor, Tensor, Tensor]], count: int
) -> tuple[tuple[TokenFiring, ...], ...]:
    """Where each feature fires; blocks are padded to one width, and what is padded is not among the chosen positions."""
    width = max(len(pair.clean) for pair in engine.task.pairs)

    def wide(part: Tensor) -> Tensor:
        return pad(part, (*(0, 0) * (part.ndim - 2), 0, width - part.shape[1]))

    tokens, where, z = (
        torch.cat([wide(part) for part in column]) for column in zip(*seen, strict=True)
    )
    return tuple(find_firing_tokens(engine.backend, tokens, where, z[..., i]) for i in range(count))
