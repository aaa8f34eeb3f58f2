"""What a loaded model is, from its module and its configuration: `ModelInfo` for either backend."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from discovery.backends.base import ModelInfo
from discovery.backends.check import Reference
from discovery.backends.huggingface import Source
from discovery.backends.layout import Layout

MLP_PARTS = ("in", "gate", "out")


def vocabulary(module: nn.Module) -> int:
    """How many token ids a Hugging Face module takes."""
    return int(module.get_input_embeddings().weight.shape[0])  # type: ignore[operator]  # it has one


def context(config: dict[str, Any]) -> int:
    """How many positions a config.json allows."""
    for name in ("n_positions", "max_position_embeddings", "n_ctx", "max_sequence_length", "seq_length"):
        if isinstance(config.get(name), int):
            return int(config[name])
    return 2048


def block_returns(module: nn.Module, tokens: torch.Tensor) -> int | None:
    """How the module's blocks hand on the residual stream: length of the tuple, or None for a bare tensor."""
    blocks = max((m for m in module.modules() if isinstance(m, nn.ModuleList)), key=len)
    found: list[Any] = []
    handle = blocks[0].register_forward_hook(lambda m, i, output: found.append(output))
    with torch.no_grad():
        module(input_ids=tokens[:, :1])
    handle.remove()
    return len(found[0]) if isinstance(found[0], tuple) else None


def describe_bridge(source: Source, bridge: Any, module: nn.Module, expected: Reference, n_ctx: int, n_params: int) -> ModelInfo:
    """Of a TransformerLens bridge around the module."""
    cfg = bridge.cfg
    heads, d_head, d_model = int(cfg.n_heads), int(cfg.d_head), int(cfg.d_model)
    kv_heads = int(getattr(cfg, "n_key_value_heads", None) or heads)
    attn_only = bool(getattr(cfg, "attn_only", False))
    return ModelInfo(
        **_origin(source, module, expected),
        backend="transformerlens",
        n_layers=int(cfg.n_layers),
        n_heads=heads,
        n_kv_heads=kv_heads,
        d_model=d_model,
        d_head=d_head,
        n_ctx=n_ctx,
        n_params=n_params,
        attn_only=attn_only,
        parallel="blocks.0.hook_resid_mid" not in bridge.hook_dict and not attn_only,
        positions=str(getattr(cfg, "positional_embedding_type", None) or "unknown"),
        normalization=str(cfg.normalization_type),
        macs_attention=2 * d_model * d_head * (heads + kv_heads),
        macs_mlp=0 if attn_only else _bridge_mlp_work(bridge.blocks[0].mlp, module),
    )


@dataclass(frozen=True)
class Shape:
    """Layers, heads and widths, as a configuration gives them."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    attn_only: bool = False

    @classmethod
    def of_hugging_face(cls, config: Any) -> Shape:
        """Of a transformers configuration, whose own names are mapped to the common ones."""
        heads, d_model = int(config.num_attention_heads), int(config.hidden_size)
        kv_heads = 1 if getattr(config, "multi_query", False) else int(getattr(config, "num_key_value_heads", None) or heads)
        return cls(int(config.num_hidden_layers), heads, kv_heads, d_model, int(getattr(config, "head_dim", None) or d_model // heads))

    @classmethod
    def of_native(cls, cfg: Any) -> Shape:
        """Of a TransformerLens configuration."""
        heads, kv_heads = int(cfg.n_heads), int(cfg.n_key_value_heads or cfg.n_heads)
        return cls(int(cfg.n_layers), heads, kv_heads, int(cfg.d_model), int(cfg.d_head), bool(cfg.attn_only))


def describe_module(source: Source, module: Any, layout: Layout, expected: Reference, n_ctx: int) -> ModelInfo:
    """Of a Hugging Face or TransformerLens-native module, whose parts are where the layout says."""
    shape = Shape.of_hugging_face(module.config) if layout.cached else Shape.of_native(module.cfg)
    block = attrgetter(layout.blocks)(module)[0]
    return ModelInfo(
        **_origin(source, module, expected),
        **vars(shape),
        backend="nnsight",
        n_ctx=n_ctx,
        n_params=sum(p.numel() for p in module.parameters()),
        parallel=layout.middle is None,
        positions=layout.positions if layout.cached else str(module.cfg.positional_embedding_type or "standard"),
        normalization=_normalization(block) if layout.cached else str(module.cfg.normalization_type),
        macs_attention=2 * shape.d_model * shape.d_head * (shape.n_heads + shape.n_kv_heads),
        macs_mlp=0 if shape.attn_only else sum(_work(attrgetter(path)(block), module) for path in layout.mlp),
    )


def _origin(source: Source, module: nn.Module, expected: Reference) -> dict[str, Any]:
    weights = next(module.parameters())
    device = str(expected.tokens.device)
    return {
        "name": source.name,
        "source": source.name if source.name == "bundled" or source.revision else str(source.directory),
        "revision": source.revision,
        "fingerprint": source.fingerprint,
        "architecture": type(module).__name__,
        "device": device,
        "dtype": str(weights.dtype).removeprefix("torch."),
        "d_vocab": expected.d_vocab,
        "d_vocab_out": None if expected.logits.shape[-1] == expected.d_vocab else int(expected.logits.shape[-1]),
        "warnings": ("mps is untested: compare a few numbers with cpu before relying on them",) if device.startswith("mps") else (),
    }


def _normalization(block: nn.Module) -> str:
    kinds = {type(part).__name__ for part in block.modules()}
    return "RMS" if any("RMS" in kind for kind in kinds) else "LN"


def _bridge_mlp_work(mlp: Any, module: Any) -> int:
    parts = {name: part for name, part in mlp.named_children() if name in MLP_PARTS}
    chosen = parts.values() if {"in", "out"} <= set(parts) else [mlp.original_component]
    return sum(_work(part, module) for part in chosen)


def _work(part: nn.Module, module: Any) -> int:
    """Multiply-adds of a part of an MLP at one position; of experts [expert …], those that a token is sent to."""
    used = int(getattr(getattr(module, "config", None), "num_experts_per_tok", None) or 1)
    weights = {id(p): p for name, p in part.named_parameters() if p.ndim > 1 and "bias" not in name}
    return sum(p.numel() if p.ndim == 2 else p[0].numel() * used for p in weights.values())
