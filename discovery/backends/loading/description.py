"""What a model's configuration and module say about it: sizes, work, and `ModelInfo`.

Work is counted in multiply-adds of matrix products, for one position.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from discovery.backends.info import ModelInfo
from discovery.backends.loading.checks import ReferenceLogits, run_reference
from discovery.backends.loading.source import ModelLocation
from discovery.backends.nnsight.layout import ModuleLayout

FUSED_QKV_TYPES = frozenset({"bloom", "codegen", "falcon", "gpt_neox", "mpt"})
"""Model types that hold q, k and v in one weight, which TransformerLens splits into copies."""

BRIDGE_MLP_PARTS = ("in", "gate", "out")
CONTEXT_FIELDS = (
    "n_positions",
    "max_position_embeddings",
    "n_ctx",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
)
DEFAULT_CONTEXT = 2048  # for a configuration without any of these fields
LENGTH_DEPENDENT_ROPE = ("longrope", "su", "dynamic")
MPS_WARNING = "mps is untested: compare a few numbers with cpu before relying on them"


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes that all layers of a model share."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    attn_only: bool = False

    @property
    def macs_attention(self) -> int:
        """Multiply-adds of one attention layer's projections at one position."""
        return 2 * self.d_model * self.d_head * (self.n_heads + self.n_kv_heads)

    @classmethod
    def of_hugging_face(cls, config: Any) -> ModelShape:
        """Read the sizes from a configuration of transformers."""
        config = config.get_text_config()  # of a model that also sees: its language model
        n_heads = int(config.num_attention_heads)
        d_model = int(config.hidden_size)
        if getattr(config, "new_decoder_architecture", False):
            n_kv_heads = int(config.num_kv_heads)  # the larger Falcons ignore their multi_query
        elif getattr(config, "multi_query", False):
            n_kv_heads = 1
        else:
            n_kv_heads = int(getattr(config, "num_key_value_heads", None) or n_heads)
        return cls(
            n_layers=int(config.num_hidden_layers),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            d_model=d_model,
            d_head=int(getattr(config, "head_dim", None) or d_model // n_heads),
        )

    @classmethod
    def of_transformerlens(cls, cfg: Any) -> ModelShape:
        """Read the sizes from a configuration of TransformerLens."""
        n_heads = int(cfg.n_heads)
        return cls(
            n_layers=int(cfg.n_layers),
            n_heads=n_heads,
            n_kv_heads=int(getattr(cfg, "n_key_value_heads", None) or n_heads),
            d_model=int(cfg.d_model),
            d_head=int(cfg.d_head),
            attn_only=bool(getattr(cfg, "attn_only", False)),
        )


def count_macs(parts: Iterable[nn.Module], module: Any) -> int:
    """Count the multiply-adds of some parts of a block at one position.

    A shared weight counts once. For stacked experts [expert …], count only the number of experts
    that serve one token.

    Args:
        parts: the parts.
        module: the model, whose configuration says how many experts serve a token.
    """
    config = getattr(module, "config", None)
    n_active_experts = int(getattr(config, "num_experts_per_tok", None) or 1)
    weights = {
        id(p): p
        for part in parts
        for name, p in part.named_parameters()
        if p.ndim > 1 and "bias" not in name
    }
    return sum(
        p.numel() if p.ndim == 2 else p[0].numel() * n_active_experts for p in weights.values()
    )


def count_parameters(module: nn.Module) -> int:
    """Count a module's parameters; tied weights count once."""
    return sum(p.numel() for p in module.parameters())


def count_copied_weights(model_type: str, shape: ModelShape) -> int:
    """Count the weights that TransformerLens holds a second time.

    Args:
        model_type: the type of the model, as its Hugging Face configuration names it.
        shape: the model's sizes.
    """
    if model_type not in FUSED_QKV_TYPES:
        return 0
    n_slots = shape.n_heads + 2 * shape.n_kv_heads
    return shape.n_layers * shape.d_model * shape.d_head * n_slots


def count_stacked_weights(module: nn.Module) -> int:
    """Count the weights that are stacked from several of the files': experts [expert …]."""
    return sum(p.numel() for p in module.parameters() if p.ndim > 2)


def read_vocabulary_size(module: nn.Module) -> int:
    """Return how many token ids a Hugging Face module takes."""
    embedding: Any = module.get_input_embeddings()  # type: ignore[operator]  # it has the method
    return int(embedding.weight.shape[0])


def read_context_length(config: Mapping[str, Any]) -> int:
    """Return the length of the longest prompt that a configuration allows.

    Some rotary embeddings change with the longest prompt of a batch, so that a prompt's numbers
    would depend on what is batched with it. For these, only the length up to which the embedding
    is fixed counts.
    """
    lengths = (config[name] for name in CONTEXT_FIELDS if isinstance(config.get(name), int))
    longest = int(next(lengths, DEFAULT_CONTEXT))
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        return longest
    if rope.get("rope_type", rope.get("type")) not in LENGTH_DEPENDENT_ROPE:
        return longest
    originals = (fields.get("original_max_position_embeddings") for fields in (rope, config))
    original = next((length for length in originals if isinstance(length, int)), longest)
    return min(longest, original)


def read_module_context_length(module: Any) -> int:
    """Return the length of the longest prompt of a Hugging Face module.

    It uses the module's configuration, which also has the defaults that config.json leaves out.
    """
    return read_context_length(module.config.get_text_config().to_dict())


def read_block_tuple_length(module: nn.Module, tokens: torch.Tensor) -> int | None:
    """Return how a module's blocks return the residual stream.

    Returns:
        The length of the tuple that a block returns, or None if it returns a bare tensor.
    """
    blocks = max((m for m in module.modules() if isinstance(m, nn.ModuleList)), key=len)
    outputs: list[Any] = []
    handle = blocks[0].register_forward_hook(lambda m, i, output: outputs.append(output))
    with torch.no_grad():
        module(input_ids=tokens[:, :1])
    handle.remove()
    return len(outputs[0]) if isinstance(outputs[0], tuple) else None


@dataclass(frozen=True, kw_only=True)
class UnwrappedModel:
    """A model before a backend wraps it, with the facts that wrapping would change or hide.

    Attributes:
        location: where it comes from.
        module: the module.
        expected: its logits on the probe prompt.
        n_ctx: the length of the longest prompt.
        n_params: how many parameters it has; wrapping makes more.
        block_tuple_length: see `read_block_tuple_length`.
        dtype: the dtype that was asked for. Some weights may be kept in a wider one.
        device: the device that was asked for; tensors on "cuda" say "cuda:0".
    """

    location: ModelLocation
    module: Any
    expected: ReferenceLogits
    n_ctx: int
    n_params: int
    block_tuple_length: int | None
    dtype: torch.dtype
    device: str

    @classmethod
    def of_module(
        cls,
        location: ModelLocation,
        module: Any,
        *,
        d_vocab: int,
        n_ctx: int,
        dtype: torch.dtype,
        device: str,
    ) -> UnwrappedModel:
        """Run the module on the probe prompt and count its parameters.

        Raises:
            ModelError: if its logits are not finite.
        """
        expected = run_reference(module, d_vocab, n_ctx, device)
        return cls(
            location=location,
            module=module,
            expected=expected,
            n_ctx=n_ctx,
            n_params=count_parameters(module),
            block_tuple_length=read_block_tuple_length(module, expected.tokens),
            dtype=dtype,
            device=device,
        )


def describe_bridge(plain: UnwrappedModel, bridge: Any) -> ModelInfo:
    """Describe a model that a TransformerLens bridge wraps."""
    cfg = bridge.cfg
    shape = ModelShape.of_transformerlens(cfg)
    model_type = str(getattr(getattr(plain.module, "config", None), "model_type", ""))
    has_resid_mid = "blocks.0.hook_resid_mid" in bridge.hook_dict
    macs_mlp = 0
    if not shape.attn_only:
        macs_mlp = count_macs(_bridge_mlp_parts(bridge.blocks[0].mlp), plain.module)
    return ModelInfo(
        **_common_facts(plain),
        **vars(shape),
        backend="transformerlens",
        parallel=not has_resid_mid and not shape.attn_only,
        positional_embedding=str(getattr(cfg, "positional_embedding_type", None) or "unknown"),
        normalization=str(cfg.normalization_type),
        copied=count_copied_weights(model_type, shape),
        macs_attention=shape.macs_attention,
        macs_mlp=macs_mlp,
    )


def describe_module(plain: UnwrappedModel, layout: ModuleLayout) -> ModelInfo:
    """Describe a module that nnsight traces: one of Hugging Face or TransformerLens's native one.

    Args:
        plain: the model.
        layout: where the module has its parts.
    """
    module = plain.module
    block = attrgetter(layout.blocks)(module)[0]
    positional_embedding: str
    if layout.takes_cache:  # a module of Hugging Face
        shape = ModelShape.of_hugging_face(module.config)
        positional_embedding = layout.positional_embedding
        normalization = _normalization(block)
    else:
        shape = ModelShape.of_transformerlens(module.cfg)
        positional_embedding = str(module.cfg.positional_embedding_type or "standard")
        normalization = str(module.cfg.normalization_type)
    macs_mlp = 0
    if not shape.attn_only:
        macs_mlp = count_macs([attrgetter(path)(block) for path in layout.mlp], module)
    return ModelInfo(
        **_common_facts(plain),
        **vars(shape),
        backend="nnsight",
        parallel=layout.resid_mid is None,
        positional_embedding=positional_embedding,
        normalization=normalization,
        macs_attention=shape.macs_attention,
        macs_mlp=macs_mlp,
    )


def _common_facts(plain: UnwrappedModel) -> dict[str, Any]:
    """Return the fields of `ModelInfo` that do not depend on the backend."""
    location = plain.location
    d_vocab = plain.expected.d_vocab
    n_logits = int(plain.expected.logits.shape[-1])
    return {
        "name": location.name,
        "source": location.source,
        "revision": location.revision,
        "fingerprint": location.fingerprint,
        "architecture": type(plain.module).__name__,
        "device": plain.device,
        "dtype": str(plain.dtype).removeprefix("torch."),
        "d_vocab": d_vocab,
        "d_vocab_out": None if n_logits == d_vocab else n_logits,
        "n_ctx": plain.n_ctx,
        "n_params": plain.n_params,
        "warnings": (MPS_WARNING,) if plain.device == "mps" else (),
    }


def _normalization(block: nn.Module) -> str:
    kinds = {type(part).__name__ for part in block.modules()}
    return "RMS" if any("RMS" in kind for kind in kinds) else "LN"


def _bridge_mlp_parts(mlp: Any) -> list[nn.Module]:
    """Return the parts of a bridge's MLP that hold weights, or the whole MLP if it has no parts."""
    parts = {name: part for name, part in mlp.named_children() if name in BRIDGE_MLP_PARTS}
    return list(parts.values()) if {"in", "out"} <= set(parts) else [mlp.original_component]
