"""Path patching of one edge (Goldowsky-Dill et al. 2023), written out on a native model's weights.

Everything is computed in float64. Nodes behind the target are recomputed because the stream that
they read has changed; nodes before it are not touched.
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
    """A native model with ordinary attention, learned positions, and LayerNorm or no norm.

    Attributes:
        config: the model's configuration.
        w: its weights in float64.
    """

    def __init__(self, config: Mapping[str, Any], state: Weights) -> None:
        self.config = config
        self.w = {name: value.double() for name, value in state.items()}

    def values(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return what each node adds to the residual stream, `embed` included: [pos d_model]."""
        return self._run(tokens, None, (), None)[1]

    def logits(self, tokens: Tensor) -> Tensor:
        """Return the logits [d_vocab] at the last position."""
        return self._run(tokens, None, (), None)[0]

    def patched(
        self, clean: Tensor, corrupted: Tensor, source: str, target: str, slots: Collection[str]
    ) -> Tensor:
        """Return the logits [d_vocab] of the clean run with one edge patched.

        Only these slots of the target read the corrupted value of the source.
        """
        message = self.values(corrupted)[source] - self.values(clean)[source]
        return self.logits_with_message(clean, target, slots, message)

    def logits_with_message(
        self, tokens: Tensor, target: str, slots: Collection[str], message: Tensor
    ) -> Tensor:
        """Return the logits [d_vocab] if only some slots of the target read a message.

        The message [pos d_model] is added to the stream that these slots read.
        """
        return self._run(tokens, target, slots, message)[0]

    def sites(
        self, tokens: Tensor, changes: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits, and the activations by name, with changes added to some of them.

        A name is such as "resid_pre.1". The heads of "z.0" stand side by side in its last axis.
        """
        logits, _, activations = self._run(tokens, None, (), None, changes or {})
        return logits, activations

    def _run(
        self,
        tokens: Tensor,
        target: str | None,
        slots: Collection[str],
        message: Tensor | None,
        changes: Mapping[str, Tensor] = {},
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return the logits, what each node adds to the stream, and the activations by name."""
        w, config = self.w, self.config
        stream = w["embed.W_E"][tokens] + w["pos_embed.W_pos"][: len(tokens)]
        node_values = {"embed": stream}
        activations: dict[str, Tensor] = {}

        def at_site(kind: str, layer: int, value: Tensor) -> Tensor:
            name = f"{kind}.{layer}"
            activations[name] = value + changes.get(name, 0.0)
            return activations[name]

        def read_stream(reader: str, slot: str, norm: str) -> Tensor:
            is_patched = message is not None and reader == target and slot in slots
            return self._norm(norm, stream + message if is_patched else stream)

        for layer in range(config["n_layers"]):
            block = f"blocks.{layer}"
            stream = at_site("resid_pre", layer, stream)
            head_outputs = [
                self._head(block, head, read_stream, f"a{layer}.h{head}")
                for head in range(config["n_heads"])
            ]
            z = at_site("z", layer, torch.cat(head_outputs, -1)).split(config["d_head"], -1)
            no_bias = torch.zeros(config["d_model"], dtype=torch.float64)
            attention = w.get(f"{block}.attn.b_O", no_bias)
            for head in range(config["n_heads"]):
                node_values[f"a{layer}.h{head}"] = z[head] @ w[f"{block}.attn.W_O"][head]
                attention = attention + node_values[f"a{layer}.h{head}"]
            stream = at_site("resid_mid", layer, stream + at_site("attn_out", layer, attention))
            if not config["attn_only"]:
                mlp_input = read_stream(f"m{layer}", "mlp", f"{block}.ln2")
                node_values[f"m{layer}"] = self._mlp(block, mlp_input)
                stream = stream + at_site("mlp_out", layer, node_values[f"m{layer}"])
            stream = at_site("resid_post", layer, stream)
        final = read_stream("logits", "logits", "ln_final")[-1]
        return final @ w["unembed.W_U"] + w["unembed.b_U"], node_values, activations

    def _head(
        self, block: str, head: int, read_stream: Callable[[str, str, str], Tensor], name: str
    ) -> Tensor:
        """Return z of one head, [pos d_head]."""
        q, k, v = (
            read_stream(name, slot, f"{block}.ln1") @ self.w[f"{block}.attn.W_{slot.upper()}"][head]
            + self.w[f"{block}.attn.b_{slot.upper()}"][head]
            for slot in ("q", "k", "v")
        )
        is_future = torch.ones(len(q), len(q)).triu(1).bool()
        scores = q @ k.T / math.sqrt(self.config["d_head"])
        return scores.masked_fill(is_future, -math.inf).softmax(-1) @ v

    def _mlp(self, block: str, mlp_input: Tensor) -> Tensor:
        """Return the output of an MLP, [pos d_model]."""
        activation = ACTIVATIONS[self.config["act_fn"]]
        hidden = activation(mlp_input @ self.w[f"{block}.mlp.W_in"] + self.w[f"{block}.mlp.b_in"])
        return hidden @ self.w[f"{block}.mlp.W_out"] + self.w[f"{block}.mlp.b_out"]

    def _norm(self, name: str, stream: Tensor) -> Tensor:
        if self.config["normalization_type"] is None:
            return stream
        assert self.config["normalization_type"] == "LN"
        shape = (self.config["d_model"],)
        gain, bias = (self.w.get(f"{name}.{part}") for part in "wb")
        return functional.layer_norm(stream, shape, gain, bias, self.config["eps"])
