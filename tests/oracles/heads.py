"""A head's circuits as dense matrices, from the weights of a plain Hugging Face module.

Every matrix has its full size, d_vocab × d_vocab or d_model × d_model, and every score is counted
in a loop. Circuit Scout computes nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.oracles.readout import final_norm


@dataclass(frozen=True, kw_only=True)
class PlainHead:
    """The maps of one head, for rows multiplied from the left, and the norm before them."""

    query: Tensor
    query_bias: Tensor
    key: Tensor
    key_bias: Tensor
    value: Tensor
    value_bias: Tensor
    output: Tensor
    norm: nn.Module


def plain_head(module: Any, layer: int, index: int) -> PlainHead:
    """Return a head of a GPT-2, Llama, Gemma or GPT-NeoX module."""
    kind = module.config.model_type
    if kind == "gpt2":
        return _gpt2_head(module, layer, index)
    if kind == "gpt_neox":
        return _neox_head(module, layer, index)
    block = module.model.layers[layer]
    attention = block.self_attn
    width = attention.head_dim
    shared = index // (module.config.num_attention_heads // module.config.num_key_value_heads)
    mine = slice(index * width, (index + 1) * width)
    of_pair = slice(shared * width, (shared + 1) * width)
    none = torch.zeros(width)
    return PlainHead(
        query=attention.q_proj.weight[mine].T,
        query_bias=none,
        key=attention.k_proj.weight[of_pair].T,
        key_bias=none,
        value=attention.v_proj.weight[of_pair].T,
        value_bias=none,
        output=attention.o_proj.weight[:, mine].T,
        norm=block.input_layernorm,
    )


def _gpt2_head(module: Any, layer: int, index: int) -> PlainHead:
    block = module.transformer.h[layer]
    d_model = module.config.n_embd
    width = d_model // module.config.n_head
    parts = block.attn.c_attn.weight.split(d_model, 1)
    biases = block.attn.c_attn.bias.split(d_model)
    mine = slice(index * width, (index + 1) * width)
    return PlainHead(
        query=parts[0][:, mine],
        query_bias=biases[0][mine],
        key=parts[1][:, mine],
        key_bias=biases[1][mine],
        value=parts[2][:, mine],
        value_bias=biases[2][mine],
        output=block.attn.c_proj.weight[mine],
        norm=block.ln_1,
    )


def _neox_head(module: Any, layer: int, index: int) -> PlainHead:
    block = module.gpt_neox.layers[layer]
    n_heads = module.config.num_attention_heads
    width = module.config.hidden_size // n_heads
    weight = block.attention.query_key_value.weight.reshape(n_heads, 3, width, -1)[index]
    bias = block.attention.query_key_value.bias.reshape(n_heads, 3, width)[index]
    return PlainHead(
        query=weight[0].T,
        query_bias=bias[0],
        key=weight[1].T,
        key_bias=bias[1],
        value=weight[2].T,
        value_bias=bias[2],
        output=block.attention.dense.weight[:, index * width : (index + 1) * width].T,
        norm=block.input_layernorm,
    )


def linear_part(norm: Any, vectors: Tensor) -> Tensor:
    """Return what a norm does to each vector apart from its scale and its bias."""
    if hasattr(norm, "bias") and norm.bias is not None:  # a LayerNorm
        return (vectors - vectors.mean(-1, keepdim=True)) * norm.weight
    gain = norm(torch.full_like(vectors[0], 1e3))  # an RMSNorm; some use 1 + weight
    return vectors * gain


def token_streams(module: Any, tokens: range, layer: int) -> Tensor:
    """Return what a head of a layer reads of each token behind the token 0, one by one."""
    rows = []
    for token in tokens:
        with torch.no_grad():
            out = module(torch.tensor([[0, token]]), output_hidden_states=True)
        rows.append(out.hidden_states[min(layer, 1)][0, 1])
    return torch.stack(rows)


def dense_ov(module: Any, layer: int, index: int, tokens: range) -> Tensor:
    """Return the centred OV circuit [token d_vocab] of a model without norms behind attention."""
    head = plain_head(module, layer, index)
    read = head.norm(token_streams(module, tokens, layer)) @ head.value + head.value_bias
    written = linear_part(final_norm(module), read @ head.output)
    return centre(written @ module.get_output_embeddings().weight.T)


def dense_qk(module: Any, layer: int, index: int, tokens: range) -> Tensor:
    """Return the centred QK circuit [token token] at a distance of 0."""
    head = plain_head(module, layer, index)
    read = head.norm(token_streams(module, tokens, layer))
    queries = read @ head.query + head.query_bias
    keys = read @ head.key + head.key_bias
    return centre(queries @ keys.T)


def centre(matrix: Tensor) -> Tensor:
    """Return a matrix without the means of its columns and of its rows."""
    matrix = matrix - matrix.mean(0)
    return matrix - matrix.mean(1, keepdim=True)


def own_in_tail(matrix: Tensor, share: float, *, largest: bool) -> float:
    """Return the share of rows whose own entry is among their largest or smallest entries."""
    count = max(1, round(share * matrix.shape[1]))
    hits = 0
    for row, values in enumerate(matrix):
        order = values.argsort(descending=largest).tolist()
        hits += row in order[:count]
    return hits / len(matrix)


def eigenvalue_share(matrix: Tensor) -> float:
    """Return Σ Re(λ) / Σ |λ| of a whole square matrix."""
    values = torch.linalg.eigvals(matrix.double())
    return float(values.real.sum() / values.abs().sum())


def composition(module: Any, writer: tuple[int, int], reader: tuple[int, int], kind: str) -> float:
    """Return a composition score from products of d_model × d_model matrices."""
    earlier = plain_head(module, *writer)
    later = plain_head(module, *reader)

    def fold(head: PlainHead, weight: Tensor) -> Tensor:
        return linear_part(head.norm, torch.eye(len(weight))) @ weight

    written = fold(earlier, earlier.value) @ earlier.output
    query, key = fold(later, later.query), fold(later, later.key)
    read = {
        "q": query @ key.T,
        "k": key @ query.T,
        "v": fold(later, later.value) @ later.output,
    }[kind]
    return float((written @ read).norm() / (written.norm() * read.norm()))
