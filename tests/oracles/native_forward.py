"""One prompt through a native model, position by position and dimension by dimension: rotations, scales, shared keys, gates.

For what `benchmarks.known_circuits.forward` leaves out. HookedTransformer's conventions: scores are divided by attn_scale (by 1 where it is not
used), a rotation turns dimension i with i + rotary_dim/2 (or i with i + 1 where adjacent) by position · base^(−2i/rotary_dim).
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
    """[pos d_vocab] in float64."""
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
            if config.get("gated_mlp"):  # HookedTransformer adds b_in behind the product
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
        found = read @ weights[name][which]
        return (
            found + weights[name.replace("W_", "b_")][which]
            if name.replace("W_", "b_") in weights
            else found
        )

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
        scale = (
            config["attn_scale"]
            if config.get("attn_scale", -1.0) > 0
            else math.sqrt(config["d_head"])
        )
    return scale * (layer + 1 if config.get("scale_attn_by_inverse_layer_idx") else 1)


def _rotate(config: Mapping[str, Any], vector: list[float], position: int) -> list[float]:
    width = config.get("rotary_dim") or config["d_head"]
    turned = list(vector)
    for pair in range(width // 2):
        one, other = (
            (2 * pair, 2 * pair + 1)
            if config.get("rotary_adjacent_pairs")
            else (pair, pair + width // 2)
        )
        angle = position * config.get("rotary_base", 10000) ** (-2 * pair / width)
        turned[one] = vector[one] * math.cos(angle) - vector[other] * math.sin(angle)
        turned[other] = vector[other] * math.cos(angle) + vector[one] * math.sin(angle)
    return turned
