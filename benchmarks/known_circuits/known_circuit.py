"""A hand-built model with its task: what a circuit search is given when its circuit is known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.known_circuits.forward import node_names
from benchmarks.known_circuits.prompts import TokenPair
from benchmarks.known_circuits.weights import Array, Head, Mlp, ResidualLayout

if TYPE_CHECKING:
    from discovery.backends.base import Backend
    from discovery.tasks.task import Task

LOGIT_GAIN = 6.0
BIAS_STD = 0.02


@dataclass(frozen=True)
class LayerWeights:
    """The heads of one layer, in order, and its MLP.

    Either all layers of a model have an MLP or none has.
    """

    heads: tuple[Head, ...]
    mlp: Mlp | None = None


@dataclass(frozen=True, kw_only=True)
class KnownCircuit:
    """A model in TransformerLens's native format, its task, and the part that each node plays.

    Attributes:
        name: the name of the model.
        summary: one or two sentences that describe the circuit.
        config: the fields of tl_config.json.
        state: the float32 weights under their TransformerLens names.
        pairs: the pairs of the task, in several templates; all pairs of a template have one length.
        roles: node -> its part in the circuit; "distractor" for a node that has none.
        layout: the subspaces in which the weights are written.
    """

    name: str
    summary: str
    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    pairs: tuple[TokenPair, ...]
    roles: Mapping[str, str]
    layout: ResidualLayout

    @property
    def universe(self) -> tuple[str, ...]:
        """Every head and every MLP, layer by layer."""
        return node_names(self.config)

    def nodes(self, role: str) -> tuple[str, ...]:
        """Return the nodes of one role, in the order of the universe."""
        return tuple(node for node in self.universe if self.roles[node] == role)

    def save(self, directory: Path) -> Path:
        """Write tl_config.json, model.safetensors and task.jsonl, and return the directory."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "tl_config.json").write_text(json.dumps(dict(self.config), indent=2) + "\n")
        save_file(
            {name: tensor.contiguous() for name, tensor in self.state.items()},
            directory / "model.safetensors",
        )
        (directory / "task.jsonl").write_text(
            "".join(json.dumps(pair.record()) + "\n" for pair in self.pairs)
        )
        return directory

    def load(self, directory: Path, pairs: int, device: str = "auto") -> tuple[Backend, Task]:
        """Save the model in a directory, and load it with `pairs` pairs of its task."""
        from discovery import load_model, load_task

        model = load_model(self.save(directory), device=device)
        return model, load_task(directory / "task.jsonl", model, pairs=pairs)

    def random_twin(self, seed: int) -> KnownCircuit:
        """Return a model with the same shapes and task and with untrained weights.

        The weights are drawn from N(0, 1/fan in), norm gains are 1 and biases 0. The twin has no
        circuit, and its accuracy is near chance.
        """
        rng = np.random.default_rng(seed)
        state = {name: _draw_untrained(name, tensor, rng) for name, tensor in self.state.items()}
        return replace(
            self,
            name=f"{self.name}-random{seed}",
            state=state,
            roles=dict.fromkeys(self.roles, "untrained"),
        )


def assemble(
    name: str,
    summary: str,
    *,
    layout: ResidualLayout,
    layers: Sequence[LayerWeights],
    pairs: tuple[TokenPair, ...],
    rng: np.random.Generator,
    norm: float | None = None,
) -> KnownCircuit:
    """Stack the layers into a model.

    Args:
        name: the name of the model.
        summary: one or two sentences that describe the circuit.
        layout: the subspaces in which the layers are written.
        layers: the weights of each layer.
        pairs: the pairs of the task.
        rng: draws the small biases b_O and b_U.
        norm: None for a model without normalisation. A number gives a LayerNorm model in which all
            norm weights have this value.
    """
    d_mlp = layers[0].mlp.W_in.shape[1] if layers[0].mlp is not None else None
    config = {
        "n_layers": len(layers),
        "d_model": layout.d_model,
        "n_heads": len(layers[0].heads),
        "d_head": layout.d_head,
        "d_mlp": d_mlp,
        "n_ctx": layout.n_ctx,
        "d_vocab": layout.d_vocab,
        "act_fn": None if d_mlp is None else "relu",
        "attn_only": d_mlp is None,
        "normalization_type": None if norm is None else "LN",
        "eps": 1e-5,
        "positional_embedding_type": "standard",
    }
    arrays: dict[str, Array] = {
        "embed.W_E": _identity(layout.d_vocab, layout.dims("tok"), layout.d_model),
        "pos_embed.W_pos": _identity(layout.n_ctx, layout.dims("pos"), layout.d_model),
        "unembed.W_U": LOGIT_GAIN * _identity(layout.d_vocab, layout.dims("out"), layout.d_model).T,
        "unembed.b_U": rng.normal(0.0, BIAS_STD, layout.d_vocab),
    }
    roles: dict[str, str] = {}
    for index, layer in enumerate(layers):
        arrays |= _block_arrays(f"blocks.{index}", layer, rng.normal(0.0, BIAS_STD, layout.d_model))
        roles |= {f"a{index}.h{number}": head.role for number, head in enumerate(layer.heads)}
        roles |= {} if layer.mlp is None else {f"m{index}": layer.mlp.role}
    if norm is not None:
        arrays |= _norm_arrays(len(layers), d_mlp is not None, layout.d_model, norm)
    return KnownCircuit(
        name=name,
        summary=summary,
        config=config,
        state={key: torch.tensor(value, dtype=torch.float32) for key, value in arrays.items()},
        pairs=pairs,
        roles=roles,
        layout=layout,
    )


def _block_arrays(block: str, layer: LayerWeights, b_O: Array) -> dict[str, Array]:
    letters = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V")
    arrays = {
        f"{block}.attn.{letter}": np.stack([getattr(head, letter) for head in layer.heads])
        for letter in letters
    }
    arrays[f"{block}.attn.b_O"] = b_O
    if layer.mlp is not None:
        arrays |= {
            f"{block}.mlp.{letter}": getattr(layer.mlp, letter)
            for letter in ("W_in", "b_in", "W_out", "b_out")
        }
    return arrays


def _norm_arrays(n_layers: int, has_mlps: bool, d_model: int, gain: float) -> dict[str, Array]:
    """Return the weights (all equal to `gain`) and biases (zero) of every norm."""
    kinds = ("ln1", "ln2") if has_mlps else ("ln1",)
    norms = [f"blocks.{index}.{kind}" for index in range(n_layers) for kind in kinds]
    norms.append("ln_final")
    weights = {f"{norm}.w": np.full(d_model, gain) for norm in norms}
    return weights | {f"{norm}.b": np.zeros(d_model) for norm in norms}


def _identity(rows: int, dims: range, width: int) -> Array:
    matrix = np.zeros((rows, width))
    matrix[range(rows), list(dims)] = 1.0
    return matrix


def _draw_untrained(name: str, tensor: Tensor, rng: np.random.Generator) -> Tensor:
    """Draw one parameter as an ordinary initialisation would."""
    parameter = name.rsplit(".", 1)[-1]
    if parameter == "w":
        return torch.ones_like(tensor)
    if parameter.startswith("b"):
        return torch.zeros_like(tensor)
    fan_in = 1 if parameter in ("W_E", "W_pos") else tensor.shape[-2]
    return torch.tensor(rng.normal(0.0, fan_in**-0.5, tuple(tensor.shape)), dtype=torch.float32)
