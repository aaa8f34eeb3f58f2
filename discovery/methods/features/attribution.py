"""Attribution: how much of the metric each feature carries, to first order.

    attribution_f = Σ_positions z_f · s · <∂m/∂x, d_f>  ≈  m(clean) − m(feature removed)

This is gradient × activation, in the units of the metric (Marks et al. 2024, arXiv 2403.19647).
With n steps the gradient is averaged over points on a straight path to the clean run. The path
starts with all features removed, or as they are in the corrupted run, and step i lies at i/n of it
(integrated gradients, Sundararajan et al. 2017, arXiv 1703.01365, with the points that EAP-IG
uses). One step is gradient × activation at the clean run. With many steps the attributions sum to
the effect of removing all features.

The decoder is linear and the error term is held fixed, so one gradient with respect to the site
gives the attribution of every feature.
"""

from __future__ import annotations

import gc
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Batch
from discovery.engine import BACKWARD_COST, row_macs
from discovery.errors import MemoryLimitError
from discovery.features import Codes
from discovery.interventions import Edit
from discovery.methods.features.splice import (
    SplicedBlock,
    batch_pairs,
    forward_equivalents,
    stream_entry,
)
from discovery.metrics import measure

# Where the path to the clean run starts: without any features, or with those of the corrupted run.
PathStart = Literal["nothing", "corrupted"]


def mean_gradient(
    view: SplicedBlock, steps: int, path_start: PathStart = "nothing"
) -> Float[Tensor, "pair pos d_out"]:
    """Return ∂m/∂x, averaged over the steps, on the CPU; it is 0 outside the mask."""
    block = view.block
    info = block.backend.info
    stream, _ = stream_entry(info, view.sae.writes)
    block.load("clean", [stream])
    # The graph of a backward pass holds every layer from the stream on.
    layers = 2 * (info.n_layers - stream.layer)
    width = block.prompts.width
    macs = (1 + BACKWARD_COST) * row_macs(info, width, start=stream.layer, columns=info.d_vocab)
    in_memory = max(1, block.rows_in_memory(0, width) // layers)
    size = min(in_memory, block.backend.max_rows_by_work(macs))
    block.meter.begin("attribution", steps * _work(view, view.all_pairs))
    waiting = [batch for pairs in view.pair_batches() for batch in batch_pairs(pairs, size)][::-1]
    gradients: dict[int, Tensor] = {}
    while waiting:
        pairs = waiting.pop()
        try:
            gradients[int(pairs[0])] = _gradient(view, pairs, steps, path_start).cpu()
        except (torch.OutOfMemoryError, MemoryError):
            if len(pairs) == 1:
                raise MemoryLimitError(
                    "There is too little memory for the gradient of one prompt.",
                    "Free memory, or shorten the prompts.",
                ) from None
            gc.collect()
            waiting += batch_pairs(pairs, (len(pairs) + 1) // 2)[::-1]
    return torch.cat([gradients[first] for first in sorted(gradients)])


def scale_features(codes: Codes) -> Float[Tensor, "row pos feature"]:
    """Return s · z: what each feature adds to the site along its decoder direction."""
    return codes.features * codes.scale


def largest_features(total: Float[Tensor, "feature"], k: int) -> tuple[int, ...]:
    """Return the k features with the largest |total|, the largest first, without those at 0."""
    best = total.abs().topk(k)
    ranked = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple(feature for feature, value in ranked if value > 0)


def _gradient(
    view: SplicedBlock, pairs: Tensor, steps: int, path_start: PathStart
) -> Float[Tensor, "n pos d_out"]:
    clean = view.target_activation(pairs)
    mask = view.mask[pairs].unsqueeze(-1)
    total = torch.zeros_like(clean)
    path: Tensor | float = 0.0  # from the start to the clean activation
    if steps > 1:
        features = scale_features(view.codes(pairs))
        if path_start == "corrupted":
            features = features - scale_features(view.codes(pairs, "corrupted"))
        path = torch.where(mask, (features @ view.sae.directions()).to(clean), 0.0)
    for step in range(1, steps + 1):
        value = (clean - (1 - step / steps) * path).detach().requires_grad_()
        with torch.enable_grad():
            total += torch.autograd.grad(_metric(view, pairs, value).sum(), value)[0]
    return torch.where(mask, total / steps, 0.0)


def _metric(view: SplicedBlock, pairs: Tensor, value: Tensor) -> Float[Tensor, "n"]:
    """Compute the metric as a function of the activation at the SAE's site."""
    block = view.block
    site = view.sae.writes
    prompts = block.prompts
    stream, is_site = stream_entry(block.backend.info, site)
    edits: list[Edit] = []
    residual = value
    if not is_site:
        inner_shape = block.activation("clean", site).shape[2:]
        edits = [Edit(site, value.reshape(*value.shape[:2], *inner_shape))]
        residual = block.activation("clean", stream)[pairs]
    batch = Batch(
        prompts.clean[pairs],
        prompts.answer_position[pairs],
        start=stream.layer,
        residual=residual,
    )
    logits = block.run(batch, edits=edits, grad=True).logits
    assert logits is not None
    block.meter.add(_work(view, pairs))
    clean = block.logits("clean")[pairs] if block.metric == "kl_divergence" else None
    return measure(block.metric, logits, prompts.answer[pairs], prompts.wrong[pairs], clean)


def _work(view: SplicedBlock, pairs: Tensor) -> float:
    """Return the forward-pass equivalents of one step's forward and backward pass."""
    prompts = view.block.prompts
    info = view.block.backend.info
    start = stream_entry(info, view.sae.writes)[0].layer
    forward = row_macs(info, prompts.width, start=start, columns=info.d_vocab)
    macs = (1 + BACKWARD_COST) * forward
    return forward_equivalents(info, macs, prompts.length[pairs].tolist())
