"""Layers, heads and widths, as a configuration gives them, and the work of a module's parts as their shapes give it.

What a loaded model is, from its module and its configuration: `ModelInfo` for either backend.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from discovery.backends.info import ModelInfo
from discovery.backends.loading.checks import ReferenceLogits, run_reference
from discovery.backends.loading.source import ModelLocation
from discovery.backends.nnsight.layout import ModuleLayout


@dataclass(frozen=True)
class ModelShape:
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
    def of_hugging_face(cls, config: Any) -> ModelShape:
        """Of a transformers configuration, whose own names are mapped to the common ones."""
        config = config.get_text_config()  # itself, but for models that see too
        heads, d_model = int(config.num_attention_heads), int(config.hidden_size)
        if getattr(
            config, "new_decoder_architecture", False
        ):  # the larger Falcons, whatever their multi_query says
            kv_heads = int(config.num_kv_heads)
        else:
            kv_heads = (
                1
                if getattr(config, "multi_query", False)
                else int(getattr(config, "num_key_value_heads", None) or heads)
            )
        return cls(
            int(config.num_hidden_layers),
            heads,
            kv_heads,
            d_model,
            int(getattr(config, "head_dim", None) or d_model // heads),
        )

    @classmethod
    def of_native(cls, cfg: Any) -> ModelShape:
        """Of a TransformerLens configuration."""
        heads, kv_heads = int(cfg.n_heads), int(cfg.n_key_value_heads or cfg.n_heads)
        return cls(
            int(cfg.n_layers),
            heads,
            kv_heads,
            int(cfg.d_model),
            int(cfg.d_head),
            bool(cfg.attn_only),
        )


def count_macs(parts: Iterable[nn.Module], module: Any) -> int:
    """Multiply-adds of an MLP's parts at one position; of experts [expert …], those a token is sent to. A shared weight counts once."""
    used = int(getattr(getattr(module, "config", None), "num_experts_per_tok", None) or 1)
    weights = {
        id(p): p
        for part in parts
        for name, p in part.named_parameters()
        if p.ndim > 1 and "bias" not in name
    }
    return sum(p.numel() if p.ndim == 2 else p[0].numel() * used for p in weights.values())


FUSED_QKV_TYPES = frozenset(
    {"bloom", "codegen", "falcon", "gpt_neox", "mpt"}
)  # q, k and v of one weight, which TransformerLens copies


def count_copied_weights(kind: str, shape: ModelShape) -> int:
    """How many weights of a model of this `model_type` TransformerLens holds a second time."""
    return (
        shape.n_layers * shape.d_model * shape.d_head * (shape.n_heads + 2 * shape.n_kv_heads)
        if kind in FUSED_QKV_TYPES
        else 0
    )


def count_stacked_weights(module: nn.Module) -> int:
    """How many weights are put together from several of the files': those of experts [expert …]."""
    return sum(p.numel() for p in module.parameters() if p.ndim > 2)


MLP_PARTS = ("in", "gate", "out")


def read_vocabulary_size(module: nn.Module) -> int:
    """How many token ids a Hugging Face module takes."""
    return int(module.get_input_embeddings().weight.shape[0])  # type: ignore[operator]  # it has one


def read_context_length(config: dict[str, Any]) -> int:
    """The longest prompt. Where the rotation depends on the longest prompt of a batch, only as far as it does not: what stands beside a
    prompt would change its numbers.
    """
    names = (
        "n_positions",
        "max_position_embeddings",
        "n_ctx",
        "max_sequence_length",
        "max_seq_len",
        "seq_length",
    )
    longest = next((int(config[name]) for name in names if isinstance(config.get(name), int)), 2048)
    rotation = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rotation, dict) or rotation.get("rope_type", rotation.get("type")) not in (
        "longrope",
        "su",
        "dynamic",
    ):
        return longest
    places = (rotation, config)
    original = next(
        (
            p["original_max_position_embeddings"]
            for p in places
            if isinstance(p.get("original_max_position_embeddings"), int)
        ),
        longest,
    )
    return min(longest, int(original))


def read_module_context_length(module: Any) -> int:
    """The longest prompt of a Hugging Face module; what its config.json leaves out is as its class has it."""
    return read_context_length(module.config.get_text_config().to_dict())


def read_block_tuple_length(module: nn.Module, tokens: torch.Tensor) -> int | None:
    """How the module's blocks hand on the residual stream: length of the tuple, or None for a bare tensor."""
    blocks = max((m for m in module.modules() if isinstance(m, nn.ModuleList)), key=len)
    found: list[Any] = []
    handle = blocks[0].register_forward_hook(lambda m, i, output: found.append(output))
    with torch.no_grad():
        module(input_ids=tokens[:, :1])
    handle.remove()
    return len(found[0]) if isinstance(found[0], tuple) else None


@dataclass(frozen=True)
class UnwrappedModel:
    """A model before an engine takes it, with what could not be asked of it afterwards.

    Attributes:
        expected: its logits; n_ctx: the longest prompt; n_params: how many it has (wrapping makes more); returns: see `block_returns`.
        dtype, device: those that were asked for. A weight may be kept wider, and a tensor on "cuda" says "cuda:0".
    """

    source: ModelLocation
    module: Any
    expected: ReferenceLogits
    n_ctx: int
    n_params: int
    block_tuple_length: int | None
    dtype: torch.dtype
    device: str

    @classmethod
    def of(
        cls,
        source: ModelLocation,
        module: Any,
        d_vocab: int,
        n_ctx: int,
        dtype: torch.dtype,
        device: str,
    ) -> UnwrappedModel:
        """Run the module, and count it.

        Raises:
            ModelError: where its logits are not finite.
        """
        expected = run_reference(module, d_vocab, n_ctx, device)
        n_params = sum(p.numel() for p in module.parameters())
        return cls(
            source,
            module,
            expected,
            n_ctx,
            n_params,
            read_block_tuple_length(module, expected.tokens),
            dtype,
            device,
        )


def describe_bridge(plain: UnwrappedModel, bridge: Any) -> ModelInfo:
    """Of a TransformerLens bridge around the module."""
    cfg = bridge.cfg
    heads, d_head, d_model = int(cfg.n_heads), int(cfg.d_head), int(cfg.d_model)
    kv_heads = int(getattr(cfg, "n_key_value_heads", None) or heads)
    attn_only = bool(getattr(cfg, "attn_only", False))
    kind = str(getattr(getattr(plain.module, "config", None), "model_type", ""))
    return ModelInfo(
        **_origin(plain),
        backend="transformerlens",
        n_layers=int(cfg.n_layers),
        n_heads=heads,
        n_kv_heads=kv_heads,
        d_model=d_model,
        d_head=d_head,
        attn_only=attn_only,
        parallel="blocks.0.hook_resid_mid" not in bridge.hook_dict and not attn_only,
        positional_embedding=str(getattr(cfg, "positional_embedding_type", None) or "unknown"),
        normalization=str(cfg.normalization_type),
        copied=count_copied_weights(
            kind, ModelShape(int(cfg.n_layers), heads, kv_heads, d_model, d_head)
        ),
        macs_attention=2 * d_model * d_head * (heads + kv_heads),
        macs_mlp=0 if attn_only else count_macs(_bridge_mlp(bridge.blocks[0].mlp), plain.module),
    )


def describe_module(plain: UnwrappedModel, layout: ModuleLayout) -> ModelInfo:
    """Of a Hugging Face or TransformerLens-native module, whose parts are where the layout says."""
    module = plain.module
    shape = (
        ModelShape.of_hugging_face(module.config)
        if layout.takes_cache
        else ModelShape.of_native(module.cfg)
    )
    block = attrgetter(layout.blocks)(module)[0]
    return ModelInfo(
        **_origin(plain),
        **vars(shape),
        backend="nnsight",
        parallel=layout.resid_mid is None,
        positional_embedding=layout.positional_embedding
        if layout.takes_cache
        else str(module.cfg.positional_embedding_type or "standard"),
        normalization=_normalization(block)
        if layout.takes_cache
        else str(module.cfg.normalization_type),
        macs_attention=shape.macs_attention,
        macs_mlp=0
        if shape.attn_only
        else count_macs([attrgetter(path)(block) for path in layout.mlp], module),
    )


def _origin(plain: UnwrappedModel) -> dict[str, Any]:
    source, expected = plain.source, plain.expected
    return {
        "name": source.name,
        "source": source.name
        if source.name == "bundled" or source.revision
        else str(source.directory),
        "revision": source.revision,
        "fingerprint": source.fingerprint,
        "architecture": type(plain.module).__name__,
        "device": plain.device,
        "dtype": str(plain.dtype).removeprefix("torch."),
        "d_vocab": expected.d_vocab,
        "d_vocab_out": None
        if expected.logits.shape[-1] == expected.d_vocab
        else int(expected.logits.shape[-1]),
        "n_ctx": plain.n_ctx,
        "n_params": plain.n_params,
        "warnings": ("mps is untested: compare a few numbers with cpu before relying on them",)
        if plain.device == "mps"
        else (),
    }


def _normalization(block: nn.Module) -> str:
    kinds = {type(part).__name__ for part in block.modules()}
    return "RMS" if any("RMS" in kind for kind in kinds) else "LN"


def _bridge_mlp(mlp: Any) -> list[nn.Module]:
    """The parts of a bridge's MLP that hold its weights, where it tells them apart."""
    parts = {name: part for name, part in mlp.named_children() if name in MLP_PARTS}
    return list(parts.values()) if {"in", "out"} <= set(parts) else [mlp.original_component]
