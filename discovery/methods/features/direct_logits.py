"""Direct logit effect: which tokens a feature promotes and suppresses by itself.

Only the final norm and the unembedding lie between the feature and the logits here. For a direction
d that is written into the residual stream, the effect is ∂ logits / ∂(amount of d). The final norm
is linearised at the final residual stream of these prompts' answer positions (at most 8 prompts),
and the effects are averaged over them. The mean over the vocabulary is subtracted, because a
softmax does not see it. In a model without a final norm the effect is exactly d · W_U.

Later layers that read the feature are left out; ablation includes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend, Batch
from discovery.backends.info import ModelInfo
from discovery.engine import BACKWARD_COST, Block, row_macs
from discovery.features import SAE
from discovery.interventions import Edit
from discovery.methods.features.firing import token_text
from discovery.methods.features.splice import forward_equivalents
from discovery.sites import Site

MAX_NORM_PROMPTS = 8  # the norm is linearised at the final residual stream of these prompts
ATTENTION_INPUTS = ("q", "k", "v")  # attention reads them, and nothing adds them to the stream


@dataclass(frozen=True)
class TokenEffect:
    """A token, and what a feature does to its logit.

    Attributes:
        token: the token's id.
        text: the token's text; None if the model has no tokenizer.
        logit: what one unit of the feature adds to the logit, minus the mean over the vocabulary.
    """

    token: int
    text: str | None
    logit: float


@dataclass(frozen=True)
class DirectLogitEffect:
    """The tokens that a feature moves most.

    Attributes:
        promoted: tokens whose logit rises most, the largest effect first.
        suppressed: tokens whose logit falls most, the largest effect first.
    """

    promoted: tuple[TokenEffect, ...]
    suppressed: tuple[TokenEffect, ...]


def last_layer_sites(info: ModelInfo) -> tuple[Site, Site]:
    """Return the last layer's input, and the final residual stream."""
    return Site("resid_pre", info.n_layers - 1), Site("resid_post", info.n_layers - 1)


def measure_direct_logits(
    block: Block, sae: SAE, features: Sequence[int], top: int
) -> tuple[DirectLogitEffect, ...]:
    """Find the tokens that each feature promotes and suppresses most.

    Args:
        top: how many tokens to return at either end.

    Returns:
        The effect of each feature. It is empty if the SAE's site is not added to the residual
        stream.
    """
    if sae.writes.kind in ATTENTION_INPUTS:
        return tuple(DirectLogitEffect((), ()) for _ in features)
    directions = to_residual_stream(block.backend, sae, sae.directions(features))
    effects = _logit_effects(block, directions)
    return tuple(_strongest_tokens(block.backend, effect, top) for effect in effects)


def to_residual_stream(
    model: Backend, sae: SAE, directions: Float[Tensor, "feature d_out"]
) -> Float[Tensor, "feature d_model"]:
    """Convert directions at the SAE's site into directions in the residual stream.

    They differ only for an SAE of head values z, which each head writes through its own W_O.
    """
    if sae.writes.kind != "z":
        return directions
    by_head = directions.reshape(-1, model.info.n_heads, model.info.d_head)
    return torch.einsum("fhd,hdm->fm", by_head, model.head_weights(sae.writes.layer).to(by_head))


def _logit_effects(
    block: Block, directions: Float[Tensor, "feature d_model"]
) -> Float[Tensor, "feature d_vocab"]:
    """Compute J·d for the Jacobian J from the final residual stream to the logits.

    Jᵀu is linear in u, so differentiating <Jᵀu, d> with respect to u gives J·d. The result is the
    mean over the prompts, minus its mean over the vocabulary.
    """
    model = block.backend
    prompts = block.prompts
    count = min(MAX_NORM_PROMPTS, len(prompts))
    rows = torch.arange(count, device=prompts.answer_position.device)
    before, final = last_layer_sites(model.info)
    block.load("clean", [before, final])
    last = prompts.answer_position[:count]
    stream = block.activation("clean", final)[rows, last].unsqueeze(1).detach().requires_grad_()
    start = block.activation("clean", before)[rows, last].unsqueeze(1)
    tokens = prompts.clean[rows, last].unsqueeze(1)
    batch = Batch(tokens, torch.zeros_like(last), start=before.layer, residual=start)
    with torch.enable_grad():
        logits = model.run(batch, edits=[Edit(final, stream)], grad=True).logits
        assert logits is not None
        u = torch.zeros_like(logits, requires_grad=True)
        back = torch.autograd.grad(logits, stream, u, create_graph=True)[0]  # Jᵀu
        products = [(back * direction.to(back)).sum() for direction in directions]
        effects = torch.stack(
            [
                torch.autograd.grad(product, u, retain_graph=True)[0].float().mean(0)
                for product in products
            ]
        )
    one_pass = row_macs(model.info, 1, start=before.layer, columns=model.info.d_vocab)
    macs = (1 + (1 + len(directions)) * BACKWARD_COST) * one_pass
    block.meter.add(forward_equivalents(model.info, macs, prompts.length[:count].tolist()))
    return effects - effects.mean(1, keepdim=True)


def _strongest_tokens(
    model: Backend, effect: Float[Tensor, "d_vocab"], top: int
) -> DirectLogitEffect:
    def token_effects(values: Tensor, tokens: Tensor) -> tuple[TokenEffect, ...]:
        return tuple(
            TokenEffect(token, token_text(model, token), value)
            for token, value in zip(tokens.tolist(), values.tolist(), strict=True)
        )

    known = effect[: model.info.d_vocab]  # the unembedding may be wider than the vocabulary
    count = min(top, len(known))
    return DirectLogitEffect(
        promoted=token_effects(*known.topk(count)),
        suppressed=token_effects(*known.topk(count, largest=False)),
    )
