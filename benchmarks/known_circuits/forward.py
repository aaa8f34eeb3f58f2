"""A plain forward pass of a TransformerLens-native model, to check the project's fast code against.

It is slow and shares no code with `discovery`. Every head is computed by itself, in the order of
Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits": q, k and v; scores divided
by sqrt(d_head); a causal softmax; z = pattern · v; value = z · W_O[head].

Conventions: a head's value includes b_V and excludes b_O. An MLP's value includes its output bias.
A replacement takes the place of a node's value, and everything downstream is recomputed, norms
included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_new": lambda x: (
        0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "silu": functional.silu,
}
CENTRED_NORMS = ("LN", "LNPre")
SCALED_NORMS = ("RMS", "RMSPre")


@dataclass(frozen=True)
class ForwardPass:
    """The logits and every node's value in one forward pass.

    Attributes:
        logits: [batch pos d_vocab].
        nodes: the value of every head ("a0.h1") and MLP ("m0"), [batch pos d_model]. In the rows in
            which a node was replaced, this is the replacement.
        patterns: the attention pattern of every head, [batch dst src].
    """

    logits: Tensor
    nodes: Mapping[str, Tensor]
    patterns: Mapping[str, Tensor]


@dataclass(frozen=True)
class Replacement:
    """A value that takes the place of what one node computes.

    Attributes:
        value: [batch pos d_model].
        rows: which rows of the batch to replace, as booleans [batch]. None replaces all rows.
    """

    value: Tensor
    rows: Tensor | None = None

    def apply_to(self, computed: Tensor) -> Tensor:
        """Return the computed value with the replacement in its rows."""
        value = self.value.to(computed.dtype)
        if value.shape != computed.shape:
            raise ValueError(
                f"A replacement of shape {tuple(value.shape)} was given for a node whose value"
                f" has shape {tuple(computed.shape)}. The shapes must be equal."
            )
        return (
            value if self.rows is None else torch.where(self.rows[:, None, None], value, computed)
        )


def node_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the name of every head and every MLP, layer by layer."""
    names: list[str] = []
    for layer in range(config["n_layers"]):
        names += [f"a{layer}.h{head}" for head in range(config["n_heads"])]
        if not config["attn_only"]:
            names.append(f"m{layer}")
    return tuple(names)


def run_forward(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    tokens: Tensor,
    replace: Mapping[str, Tensor | Replacement] | None = None,
    dtype: torch.dtype = torch.float64,
) -> ForwardPass:
    """Run token ids [batch pos] through the model, with some nodes replaced.

    Args:
        config: the fields of tl_config.json.
        state: the weights under their TransformerLens names. Absent biases are zero.
        tokens: the token ids [batch pos], without padding.
        replace: node name -> its value [batch pos d_model], or a `Replacement` for some rows only.
        dtype: the dtype in which everything is computed.

    Raises:
        ValueError: if a node does not exist or a replacement has another shape than the node.
    """
    edits = {
        name: edit if isinstance(edit, Replacement) else Replacement(edit)
        for name, edit in (replace or {}).items()
    }
    unknown = set(edits) - set(node_names(config))
    if unknown:
        raise ValueError(
            f"The model has no such nodes: {sorted(unknown)}."
            f" It has {', '.join(node_names(config))}."
        )
    weights = {name: tensor.to(dtype) for name, tensor in state.items()}
    nodes: dict[str, Tensor] = {}
    patterns: dict[str, Tensor] = {}

    def record(name: str, computed: Tensor) -> Tensor:
        nodes[name] = edits[name].apply_to(computed) if name in edits else computed
        return nodes[name]

    resid = _embed(config, weights, tokens)
    for layer in range(config["n_layers"]):
        block = f"blocks.{layer}"
        read = apply_norm(config, weights, f"{block}.ln1", resid)
        written = torch.zeros_like(resid)
        for head in range(config["n_heads"]):
            name = f"a{layer}.h{head}"
            value, patterns[name] = _head(config, weights, f"{block}.attn", head, read)
            written = written + record(name, value)
        resid = resid + written + weights.get(f"{block}.attn.b_O", torch.zeros((), dtype=dtype))
        if not config["attn_only"]:
            read = apply_norm(config, weights, f"{block}.ln2", resid)
            resid = resid + record(f"m{layer}", _mlp(config, weights, f"{block}.mlp", read))
    final = apply_norm(config, weights, "ln_final", resid)
    logits = final @ weights["unembed.W_U"] + weights.get(
        "unembed.b_U", torch.zeros((), dtype=dtype)
    )
    return ForwardPass(logits, nodes, patterns)


def _embed(config: Mapping[str, Any], weights: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """Return the token embedding plus the learned position embedding, [batch pos d_model]."""
    resid = weights["embed.W_E"][tokens]
    kind = config["positional_embedding_type"]
    if kind == "standard":
        return resid + weights["pos_embed.W_pos"][: tokens.shape[1]]
    if kind is None:
        return resid
    raise ValueError(f"The positional embedding {kind!r} is unknown here: use 'standard' or None.")


def apply_norm(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], name: str, resid: Tensor
) -> Tensor:
    """Apply LayerNorm or RMS norm over d_model, with the weight and bias that the model has."""
    kind = config["normalization_type"]
    if kind is None:
        return resid
    if kind not in CENTRED_NORMS + SCALED_NORMS:
        raise ValueError(
            f"The normalisation {kind!r} is unknown here:"
            f" use one of {(*CENTRED_NORMS, *SCALED_NORMS)} or None."
        )
    if kind in CENTRED_NORMS:
        resid = resid - resid.mean(-1, keepdim=True)
    resid = resid / (resid.square().mean(-1, keepdim=True) + config.get("eps", 1e-5)).sqrt()
    if kind in ("LN", "RMS"):
        resid = resid * weights[f"{name}.w"]
    return resid + weights[f"{name}.b"] if kind == "LN" else resid


def _head(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], attn: str, head: int, read: Tensor
) -> tuple[Tensor, Tensor]:
    """Return one head's value [batch pos d_model] and its pattern [batch dst src]."""

    def project(letter: str) -> Tensor:  # [batch pos d_head]
        projected = read @ weights[f"{attn}.W_{letter}"][head]
        bias = weights.get(f"{attn}.b_{letter}")
        return projected if bias is None else projected + bias[head]

    scores = project("Q") @ project("K").transpose(-1, -2) / math.sqrt(config["d_head"])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    pattern = scores.masked_fill(future, -math.inf).softmax(-1)
    return pattern @ project("V") @ weights[f"{attn}.W_O"][head], pattern


def _mlp(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], mlp: str, read: Tensor
) -> Tensor:
    """Return an MLP's value [batch pos d_model], its output bias included."""
    zero = torch.zeros((), dtype=read.dtype)
    hidden = ACTIVATIONS[config["act_fn"]](
        read @ weights[f"{mlp}.W_in"] + weights.get(f"{mlp}.b_in", zero)
    )
    return hidden @ weights[f"{mlp}.W_out"] + weights.get(f"{mlp}.b_out", zero)
