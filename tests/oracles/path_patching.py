"""Path patching of one edge, written out on the weights of a native model in float64 (Goldowsky-Dill et al. 2023).

Nodes behind the target are recomputed because the stream they read has changed; nodes before it are not touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Weights = Mapping[str, Tensor]
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
}


class PathPatchingOracle:
    """A native model with ordinary attention and learned positions; without a norm or with LayerNorm."""

    def __init__(self, config: Mapping[str, Any], state: Weights) -> None:
        self.config = config
        self.w = {name: value.double() for name, value in state.items()}

    def values(self, tokens: Tensor) -> dict[str, Tensor]:
        """What each node writes into the residual stream, `embed` included: node -> [pos d_model]."""
        return self._run(tokens, None, (), None)[1]

    def logits(self, tokens: Tensor) -> Tensor:
        """[d_vocab] at the last position."""
        return self._run(tokens, None, (), None)[0]

    def patched(
        self, clean: Tensor, corrupted: Tensor, source: str, target: str, slots: Collection[str]
    ) -> Tensor:
        """Logits [d_vocab] at the end of the clean run in which these inputs of `target` hear the corrupted `source`."""
        message = self.values(corrupted)[source] - self.values(clean)[source]
        return self.logits_with_message(clean, target, slots, message)

    def logits_with_message(
        self, tokens: Tensor, target: str, slots: Collection[str], message: Tensor
    ) -> Tensor:
        """Logits [d_vocab] where these inputs of `target` hear `message` [pos d_model] beside the stream."""
        return self._run(tokens, target, slots, message)[0]

    def sites(
        self, tokens: Tensor, moved: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the activations by name ("resid_pre.1"; heads of "z.0" side by side), of which some are moved by so much."""
        logits, _, seen = self._run(tokens, None, (), None, moved or {})
        return logits, seen

    def _run(
        self,
        tokens: Tensor,
        target: str | None,
        slots: Collection[str],
        message: Tensor | None,
        moved: Mapping[str, Tensor] = {},
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        w, c = self.w, self.config
        stream = w["embed.W_E"][tokens] + w["pos_embed.W_pos"][: len(tokens)]
        wrote = {"embed": stream}
        seen: dict[str, Tensor] = {}

        def at_site(kind: str, layer: int, value: Tensor) -> Tensor:
            seen[f"{kind}.{layer}"] = value = value + moved.get(f"{kind}.{layer}", 0.0)
            return value

        def heard(reader: str, slot: str, norm: str) -> Tensor:
            told = (
                stream + message
                if message is not None and reader == target and slot in slots
                else stream
            )
            return self._norm(norm, told)

        for layer in range(c["n_layers"]):
            at, added = (
                f"blocks.{layer}",
                w.get(f"blocks.{layer}.attn.b_O", torch.zeros(c["d_model"], dtype=torch.float64)),
            )
            stream = at_site("resid_pre", layer, stream)
            spoken = []
            for head in range(c["n_heads"]):
                name = f"a{layer}.h{head}"
                q, k, v = (
                    heard(name, slot, f"{at}.ln1") @ w[f"{at}.attn.W_{slot.upper()}"][head]
                    + w[f"{at}.attn.b_{slot.upper()}"][head]
                    for slot in ("q", "k", "v")
                )
                scores = (q @ k.T / math.sqrt(c["d_head"])).masked_fill(
                    torch.ones(len(tokens), len(tokens)).triu(1).bool(), -math.inf
                )
                spoken.append(scores.softmax(-1) @ v)
            spoken = at_site("z", layer, torch.cat(spoken, -1)).split(c["d_head"], -1)
            for head in range(c["n_heads"]):
                wrote[f"a{layer}.h{head}"] = spoken[head] @ w[f"{at}.attn.W_O"][head]
                added = added + wrote[f"a{layer}.h{head}"]
            stream = at_site("resid_mid", layer, stream + at_site("attn_out", layer, added))
            if not c["attn_only"]:
                hidden = ACTIVATIONS[c["act_fn"]](
                    heard(f"m{layer}", "mlp", f"{at}.ln2") @ w[f"{at}.mlp.W_in"]
                    + w[f"{at}.mlp.b_in"]
                )
                wrote[f"m{layer}"] = hidden @ w[f"{at}.mlp.W_out"] + w[f"{at}.mlp.b_out"]
                stream = stream + at_site("mlp_out", layer, wrote[f"m{layer}"])
            stream = at_site("resid_post", layer, stream)
        return (
            heard("logits", "logits", "ln_final")[-1] @ w["unembed.W_U"] + w["unembed.b_U"],
            wrote,
            seen,
        )

    def _norm(self, name: str, stream: Tensor) -> Tensor:
        if self.config["normalization_type"] is None:
            return stream
        assert self.config["normalization_type"] == "LN"
        width = (self.config["d_model"],)
        gain, bias = (self.w.get(f"{name}.{part}") for part in "wb")
        return functional.layer_norm(stream, width, gain, bias, self.config["eps"])
