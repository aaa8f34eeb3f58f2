"""Direct logit effect: which tokens a feature promotes and suppresses with nothing in between but the final norm and the unembedding.

For a direction d written into the residual stream, ∂ logits / ∂(amount of d), with the final norm linearised at the final residual
stream of (at most 8 of) these prompts' answer positions, averaged, and the mean over the vocabulary taken out (a softmax does not see
it). Where the model has no final norm this is d·W_U exactly. Later layers that read the feature are left out: ablation counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend, Batch
from discovery.backends.info import ModelInfo
from discovery.engine import BACKWARD_COST, Block, prompt_macs, row_macs
from discovery.features import SAE
from discovery.interventions import Edit
from discovery.sites import Site

MAX_NORM_PROMPTS = 8  # at whose final residual stream the norm is linearised
ATTENTION_INPUTS = ("q", "k", "v")  # attention reads them; they are written nowhere


@dataclass(frozen=True)
class TokenEffect:
    """A token and what one unit of the feature adds to its logit, against the mean over the vocabulary."""

    token: int
    text: str | None
    logit: float


@dataclass(frozen=True)
class DirectLogitEffect:
    """The ends of a feature's direct logit effect."""

    promoted: tuple[TokenEffect, ...]
    suppressed: tuple[TokenEffect, ...]


def last_layer_sites(info: ModelInfo) -> tuple[Site, Site]:
    """The last layer's input, and the final residual stream."""
    return Site("resid_pre", info.n_layers - 1), Site("resid_post", info.n_layers - 1)


def measure_direct_logits(
    block: Block, sae: SAE, features: Sequence[int], top: int
) -> tuple[DirectLogitEffect, ...]:
    """The tokens that each feature moves most, `top` at either end; empty where the site is not added to the residual stream."""
    if sae.writes.kind in ATTENTION_INPUTS:
        return tuple(DirectLogitEffect((), ()) for _ in features)
    directions = to_residual_stream(block.backend, sae, sae.directions(features))
    return tuple(
        _strongest_tokens(block.backend, effect, top) for effect in _logits_along(block, directions)
    )


def to_residual_stream(
    model: Backend, sae: SAE, directions: Tensor
) -> Float[Tensor, "feature d_model"]:
    """What directions at the dictionary's site are in the residual stream; heads are written through their own output weights."""
    if sae.writes.kind != "z":
        return directions
    by_head = directions.reshape(-1, model.info.n_heads, model.info.d_head)
    return torch.einsum("fhd,hdm->fm", by_head, model.head_weights(sae.writes.layer).to(by_head))


def _logits_along(
    block: Block, directions: Float[Tensor, "feature d_model"]
) -> Float[Tensor, "feature d_vocab"]:
    """J·d by differentiating Jᵀu, which is linear in u, with respect to u; mean over the prompts, centred over the vocabulary."""
    model, prompts, info = block.backend, block.prompts, block.backend.info
    count = min(MAX_NORM_PROMPTS, len(prompts))
    rows = torch.arange(count, device=prompts.answer_position.device)
    before, site = last_layer_sites(info)
    block.load("clean", [before, site])
    last = prompts.answer_position[:count]
    stream = block.activation("clean", site)[rows, last].unsqueeze(1).detach().requires_grad_()
    start = block.activation("clean", before)[rows, last].unsqueeze(1)
    batch = Batch(
        prompts.clean[rows, last].unsqueeze(1),
        torch.zeros_like(last),
        start=before.layer,
        residual=start,
    )
    with torch.enable_grad():
        logits = model.run(batch, edits=[Edit(site, stream)], grad=True).logits
        assert logits is not None
        probe = torch.zeros_like(logits, requires_grad=True)
        back = torch.autograd.grad(logits, stream, probe, create_graph=True)[0]
        along = [
            torch.autograd.grad((back * d.to(back)).sum(), probe, retain_graph=True)[0]
            .float()
            .mean(0)
            for d in directions
        ]
    one = (1 + (1 + len(directions)) * BACKWARD_COST) * row_macs(
        info, 1, start=before.layer, columns=info.d_vocab
    )
    block.meter.add(
        sum(one / prompt_macs(info, length) for length in prompts.length[:count].tolist())
    )
    effects = torch.stack(along)
    return effects - effects.mean(1, keepdim=True)


def _strongest_tokens(
    model: Backend, effect: Float[Tensor, "d_vocab"], top: int
) -> DirectLogitEffect:
    decode = model.tokenizer.decode if model.tokenizer else None

    def named(values: Tensor, tokens: Tensor) -> tuple[TokenEffect, ...]:
        pairs = zip(tokens.tolist(), values.tolist(), strict=True)
        return tuple(
            TokenEffect(token, decode([token]) if decode else None, value) for token, value in pairs
        )

    inside = effect[: model.info.d_vocab]
    count = min(top, len(inside))
    return DirectLogitEffect(named(*inside.topk(count)), named(*inside.topk(count, largest=False)))
