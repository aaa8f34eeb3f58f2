"""Features exchanged between the clean and the corrupted run.

Nodes of a circuit record are found by the attribution of their exchange, and verified by its exact
effect. With c = s · z, what a feature adds to the activation along its direction d at the chosen
positions (both sides of a pair have equally many tokens):

    attribution   Σ (c_clean − c_corrupted) · <∂m/∂x, d>: the effect of the exchange to first order
                  (Marks et al. 2024, arXiv 2403.19647)
    noising       m(clean) − m(x + (c_corrupted − c_clean) d): the exact effect in the clean run
                  x
    denoising     m(x' + (c_clean − c_corrupted) d) − m(corrupted): the exact effect in the
                  corrupted run x'
    removal       m(clean) − m(x − c_clean d): the exact effect of setting the feature to 0

The error term and all other features stay as they are in the run that is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.methods.features.attribution import (
    largest_features,
    mean_gradient,
    scale_features,
)
from discovery.methods.features.collector import FeatureCollector
from discovery.methods.features.direct_logits import DirectLogitEffect, measure_direct_logits
from discovery.methods.features.firing import TokenFiring
from discovery.methods.features.pushes import (
    ShuffledDecoderControl,
    measure_controls,
    one_case_each,
    push,
)
from discovery.methods.features.splice import SplicedBlock, SplicedTask


@dataclass(frozen=True)
class AttributionRanking:
    """The features with the largest attribution.

    Attributes:
        features: the features, the largest absolute mean first.
        per_pair: their attribution: m(clean) − m(exchanged) to first order.
    """

    features: tuple[int, ...]
    per_pair: Float[Tensor, "pair k"]


@dataclass(frozen=True, kw_only=True)
class ExchangeMeasurement:
    """What exchanging each of k features does, exactly.

    `noised`, `denoised` and `removed` are metrics of each pair, from which nothing is subtracted.

    Attributes:
        noised: of the clean run with the feature as in the corrupted run.
        denoised: of the corrupted run with the feature as in the clean run.
        removed: of the clean run with the feature set to 0.
        activation: the feature's largest activation of each pair in the clean run.
        controls: the noising effect against the same push along other features' directions.
        tokens: where each feature fires.
        direct: the tokens that each feature promotes and suppresses.
    """

    noised: Float[Tensor, "pair k"]
    denoised: Float[Tensor, "pair k"]
    removed: Float[Tensor, "pair k"]
    activation: Float[Tensor, "pair k"]
    controls: tuple[ShuffledDecoderControl | None, ...]
    tokens: tuple[tuple[TokenFiring, ...], ...]
    direct: tuple[DirectLogitEffect, ...]


def rank_by_attribution(spliced: SplicedTask, steps: int, k: int) -> AttributionRanking:
    """Return the k features whose exchange has the largest effect, to first order.

    Args:
        steps: steps of the integrated gradients, from the corrupted run's features to the clean.
    """
    sae = spliced.sae
    gradients = {}
    total = torch.zeros(sae.d_sae, dtype=torch.float64)
    for view in spliced.blocks():
        gradient = mean_gradient(view, steps, "corrupted")
        gradients[view.first_pair] = gradient
        for pairs in view.pair_batches():
            change = _change(view, pairs)
            slope = gradient[pairs.cpu()].to(change) @ sae.directions().T
            total += (change * slope).sum((0, 1)).double().cpu()
    features = largest_features(total, min(k, sae.d_sae))
    directions = sae.directions(features)
    per_pair = []
    for view in spliced.blocks():
        for pairs in view.pair_batches():
            change = _change(view, pairs)[..., list(features)]
            slope = gradients[view.first_pair][pairs.cpu()].to(change) @ directions.T
            per_pair.append((change * slope).sum(1))
    return AttributionRanking(features, torch.cat(per_pair))


def _change(view: SplicedBlock, pairs: Tensor) -> Float[Tensor, "n pos feature"]:
    """Return c_clean − c_corrupted of every feature, 0 outside the mask."""
    clean = scale_features(view.codes(pairs))
    corrupted = scale_features(view.codes(pairs, "corrupted"))
    return (clean - corrupted) * view.mask[pairs].unsqueeze(-1)


def measure_exchange(
    spliced: SplicedTask, features: Sequence[int], *, draws: int, seed: int, top: int
) -> ExchangeMeasurement:
    """Exchange each feature alone, in every pair and both directions.

    Args:
        draws: draws of the shuffled-decoder control for each feature.
        top: how many promoted and suppressed tokens to list.
    """
    directions = spliced.sae.directions(features).unsqueeze(1)
    collector = FeatureCollector()
    controls: Sequence[ShuffledDecoderControl | None] = ()
    direct: tuple[DirectLogitEffect, ...] = ()
    for view in spliced.blocks():
        z, clean = view.contributions(features, "clean")
        _, corrupted = view.contributions(features, "corrupted")
        change = corrupted - clean
        noised = push(view, one_case_each(change), directions, label="feature noising").T
        denoised = push(
            view, one_case_each(-change), directions, label="feature denoising", side="corrupted"
        ).T
        removed = push(view, one_case_each(-clean), directions, label="feature removal").T
        collector.add(view, z, noised=noised, denoised=denoised, removed=removed)
        if collector.is_first_block:
            effects = view.block.baseline("clean").unsqueeze(1) - noised
            controls = measure_controls(view, features, change, effects, draws, seed)
            direct = measure_direct_logits(view.block, spliced.sae, features, top)
    return ExchangeMeasurement(
        **collector.per_pair(),
        controls=tuple(controls),
        tokens=collector.firing_tokens(spliced.engine),
        direct=direct,
    )
