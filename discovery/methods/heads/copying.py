"""Copying: whether a head's OV circuit raises the logit of the token that it reads.

A token is read as the residual stream has it after the first layer, in a text without other words,
as Wang et al. (2022) do, and not as the bare embedding, which many models change at once. Heads of
the first layer read the embedding itself. The stream goes through the norm before the attention,
W_V, W_O (with the norm behind it, if there is one), the last norm and W_U. The score is the share
of tokens whose own logit is among the largest twentieth of the drawn tokens' logits; chance is that
twentieth. For anti-copying it is the smallest twentieth. Only the drawn tokens' columns of W_U are
used, so the d_vocab × d_vocab matrix of a head is never formed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.backends.base import Backend, Batch
from discovery.backends.weights import ModelWeights
from discovery.engine import Meter, row_macs
from discovery.engine.cost import forward_equivalents
from discovery.sites import Site

MAX_TOKENS = 200
ROWS_PER_BATCH = 1024
TAIL = 0.05  # of the drawn tokens; the chance level of the scores


def draw_tokens(model: Backend, seed: int, count: int = MAX_TOKENS) -> tuple[int, ...]:
    """Draw distinct tokens of the vocabulary."""
    n_tokens = min(model.d_vocab, model.n_logits)
    return tuple(random.Random(f"tokens-{seed}").sample(range(n_tokens), min(count, n_tokens)))


@dataclass(frozen=True)
class TokenStreams:
    """Tokens as the residual stream has them in a text without other words.

    Attributes:
        embedded: the embedding of each token.
        after_first: the stream of each token after the first layer.
    """

    embedded: Float[Tensor, "token d_model"]
    after_first: Float[Tensor, "token d_model"]

    def read_by(self, layer: int) -> Float[Tensor, "token d_model"]:
        """Return what the heads of a layer read: the embedding only in the first one."""
        return self.after_first if layer else self.embedded


def read_token_streams(model: Backend, tokens: Sequence[int], meter: Meter) -> TokenStreams:
    """Run each token in a text without other words, through the first layer.

    Args:
        tokens: the tokens.
        meter: counts the work.
    """
    prefix = tuple(model.tokenizer.encode("")) if model.tokenizer else (0,)
    prefix = prefix or (tokens[0],)
    rows = torch.tensor([[*prefix, token] for token in tokens], device=model.device)
    sites = [Site("resid_pre", 0), Site("resid_post", 0)]
    macs = row_macs(model.info, rows.shape[1], stop=1, columns=0)
    streams: list[list[Tensor]] = [[], []]
    for batch in torch.split(rows, min(ROWS_PER_BATCH, model.max_rows_by_work(macs))):
        read = model.run(Batch(batch, stop=1), sites).activations
        for site, stream in zip(sites, streams, strict=True):
            stream.append(read[site][:, -1])
        meter.add(forward_equivalents(model.info, macs, [rows.shape[1]] * len(batch)))
    return TokenStreams(torch.cat(streams[0]), torch.cat(streams[1]))


def self_logits(
    weights: ModelWeights,
    layer: int,
    streams: Float[Tensor, "token d_model"],
    tokens: Int[Tensor, "token"],
) -> Float[Tensor, "head token token"]:
    """Return what each head of a layer adds to each token's logit when it reads each token.

    The scale of the last norm is left out, because it does not change the order of the logits.
    """
    info = weights.backend.info
    group = info.n_heads // info.n_kv_heads
    read = weights.attention_norm(layer)(streams.to(weights.unembedding.dtype))
    weight, bias = weights.reads(layer, "v")
    values = torch.einsum("tm,hmd->htd", read, weight) + bias[:, None]
    values = values.repeat_interleave(group, 0)
    output = weights.attention_output(layer)
    columns = weights.unembedding[:, tokens]
    directions = output.norm.read_direction(weights.final_norm.read_direction(columns.T))
    return torch.einsum("htd,hdm,um->htu", values, output.weights, directions)


def copying_scores(
    logits: Float[Tensor, "head token token"],
) -> tuple[Float[Tensor, "head token"], Float[Tensor, "head token"]]:
    """Return for each head and token whether it is copied, and whether it is anti-copied (0 or 1).

    Each logit is centred over the tokens that are read, so that a head which raises some token
    whatever it reads copies nothing.
    """
    centred = logits - logits.mean(1, keepdim=True)
    n = logits.shape[1]
    tail = max(1, round(TAIL * n))
    own = centred.diagonal(dim1=1, dim2=2)
    # A tie counts against the head: one that writes nothing copies nothing. Each token ties itself.
    at_least = (centred >= own[..., None]).sum(2)
    at_most = (centred <= own[..., None]).sum(2)
    return (at_least <= tail).double(), (at_most <= tail).double()
