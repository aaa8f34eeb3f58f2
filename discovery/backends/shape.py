"""Layers, heads and widths, as a configuration gives them, and the work of a module's parts as their shapes give it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Shape:
    """What every part of a model is sized by."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    attn_only: bool = False

    @property
    def macs_attention(self) -> int:
        """Multiply-adds of the attention's projections at one position."""
        return 2 * self.d_model * self.d_head * (self.n_heads + self.n_kv_heads)

    @classmethod
    def of_hugging_face(cls, config: Any) -> Shape:
        """Of a transformers configuration, whose own names are mapped to the common ones."""
        config = config.get_text_config()  # itself, but for models that see too
        heads, d_model = int(config.num_attention_heads), int(config.hidden_size)
        if getattr(config, "new_decoder_architecture", False):  # the larger Falcons, whatever their multi_query says
            kv_heads = int(config.num_kv_heads)
        else:
            kv_heads = 1 if getattr(config, "multi_query", False) else int(getattr(config, "num_key_value_heads", None) or heads)
        return cls(int(config.num_hidden_layers), heads, kv_heads, d_model, int(getattr(config, "head_dim", None) or d_model // heads))

    @classmethod
    def of_native(cls, cfg: Any) -> Shape:
        """Of a TransformerLens configuration."""
        heads, kv_heads = int(cfg.n_heads), int(cfg.n_key_value_heads or cfg.n_heads)
        return cls(int(cfg.n_layers), heads, kv_heads, int(cfg.d_model), int(cfg.d_head), bool(cfg.attn_only))


def work(parts: Iterable[nn.Module], module: Any) -> int:
    """Multiply-adds of an MLP's parts at one position; of experts [expert …], those a token is sent to. A shared weight counts once."""
    used = int(getattr(getattr(module, "config", None), "num_experts_per_tok", None) or 1)
    weights = {id(p): p for part in parts for name, p in part.named_parameters() if p.ndim > 1 and "bias" not in name}
    return sum(p.numel() if p.ndim == 2 else p[0].numel() * used for p in weights.values())


TAKEN_APART = frozenset({"bloom", "codegen", "falcon", "gpt_neox", "mpt"})  # q, k and v of one weight, which TransformerLens copies


def copied(kind: str, shape: Shape) -> int:
    """How many weights of a model of this `model_type` TransformerLens holds a second time."""
    return shape.n_layers * shape.d_model * shape.d_head * (shape.n_heads + 2 * shape.n_kv_heads) if kind in TAKEN_APART else 0


def stacked(module: nn.Module) -> int:
    """How many weights are put together from several of the files': those of experts [expert …]."""
    return sum(p.numel() for p in module.parameters() if p.ndim > 2)
