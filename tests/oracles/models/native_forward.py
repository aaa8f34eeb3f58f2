"""One prompt through a native model, computed position by position and dimension by dimension.

This oracle has what `benchmarks.known_circuits.forward` leaves out: rotary embeddings, scales,
shared keys and values, and gated MLPs. The conventions are HookedTransformer's: scores are divided
by attn_scale (or by 1 if it is not used), and a rotation turns dimension i with i + rotary_dim/2
(or with i + 1 for adjacent pairs) by the angle position · base^(−2i/rotary_dim).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.known_circuits.forward import ACTIVATIONS, apply_norm


def native_logits(
    config: Mapping[str, Any], state: Mapping[str, Tensor], tokens: Sequence[int]
) -> Tensor:
    """Return the logits [pos d_vocab] in float64."""
    weights = {name: value.double() for name, value in state.items()}

    def bias(name: str) -> Tensor:
        return weights.get(name, torch.zeros((), dtype=torch.float64))

    resid = weights["embed.W_E"][list(tokens)]
    if config["positional_embedding_type"] == "standard":
        resid = resid + weights["pos_embed.W_pos"][: len(tokens)]
    for layer in range(config["n_layers"]):
        read = apply_norm(config, weights, f"blocks.{layer}.ln1", resid)
        heads = [_head(config, weights, layer, head, read) for head in range(config["n_heads"])]
        resid = resid + torch.stack(heads).sum(0) + bias(f"blocks.{layer}.attn.b_O")
        if not config["attn_only"]:
            at = f"blocks.{layer}.mlp"
            read = apply_norm(config, weights, f"blocks.{layer}.ln2", resid)
            act = ACTIVATIONS[config["act_fn"]]
            if config.get("gated_mlp"):  # HookedTransformer adds b_in after the product
                hidden = act(read @ weights[f"{at}.W_gate"]) * (
                    read @ weights[f"{at}.W_in"]
                ) + bias(f"{at}.b_in")
            else:
                hidden = act(read @ weights[f"{at}.W_in"] + bias(f"{at}.b_in"))
            resid = resid + hidden @ weights[f"{at}.W_out"] + bias(f"{at}.b_out")
    return apply_norm(config, weights, "ln_final", resid) @ weights["unembed.W_U"] + bias(
        "unembed.b_U"
    )


def _head(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], layer: int, head: int, read: Tensor
) -> Tensor:
    shared = head // (config["n_heads"] // (config.get("n_key_value_heads") or config["n_heads"]))

    def project(letter: str, which: int) -> Tensor:
        at = f"blocks.{layer}.attn."
        name = next(
            at + mark + f"W_{letter}" for mark in ("", "_") if at + mark + f"W_{letter}" in weights
        )
        projected = read @ weights[name][which]
        bias = name.replace("W_", "b_")
        return projected + weights[bias][which] if bias in weights else projected

    q, k, v = project("Q", head), project("K", shared), project("V", shared)
    if config["positional_embedding_type"] == "rotary":
        q, k = (
            [_rotate(config, row, position) for position, row in enumerate(rows.tolist())]
            for rows in (q, k)
        )
    written = []
    for dst in range(len(read)):
        scores = [
            sum(a * b for a, b in zip(list(q[dst]), list(k[src]), strict=True))
            / _scale(config, layer)
            for src in range(dst + 1)
        ]
        weighing = torch.tensor([float(score) for score in scores], dtype=torch.float64).softmax(0)
        written.append(weighing @ v[: dst + 1])
    return torch.stack(written) @ weights[f"blocks.{layer}.attn.W_O"][head]


def _scale(config: Mapping[str, Any], layer: int) -> float:
    scale = 1.0
    if config.get("use_attn_scale", True):
        scale = math.sqrt(config["d_head"])
        if config.get("attn_scale", -1.0) > 0:
            scale = config["attn_scale"]
    return scale * (layer + 1 if config.get("scale_attn_by_inverse_layer_idx") else 1)


def _rotate(config: Mapping[str, Any], vector: list[float], position: int) -> list[float]:
    width = config.get("rotary_dim") or config["d_head"]
    rotated = list(vector)
    for pair in range(width // 2):
        first, second = pair, pair + width // 2
        if config.get("rotary_adjacent_pairs"):
            first, second = 2 * pair, 2 * pair + 1
        angle = position * config.get("rotary_base", 10000) ** (-2 * pair / width)
        rotated[first] = vector[first] * math.cos(angle) - vector[second] * math.sin(angle)
        rotated[second] = vector[second] * math.cos(angle) + vector[first] * math.sin(angle)
    return rotated
