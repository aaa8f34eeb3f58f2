"""Where each architecture keeps its parts: the names of the modules whose inputs and outputs are the sites.

Found by Hugging Face's `model_type`. What a part adds to the residual stream is its site: where a norm stands behind the attention or
the MLP (Gemma 2 and 3, OLMo 2), that norm's output is attn_out or mlp_out. An architecture that is not in the table is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from discovery.errors import ModelError

# transformers keeps softmax and the weighing of values in one function for most architectures; its dropout's output is what weighs.
SHARED_PATTERN = "source.attention_interface_1.source.nn_functional_dropout_0"
# Once TransformerLens has wrapped a Gemma 2 or 3, it stands in front of that function for every other one in the process.
WRAPPED_PATTERN = "source.attention_interface_1.source._ORIGINAL_EAGER_ATTENTION_FORWARD_0.source.nn_functional_dropout_0"


@dataclass(frozen=True)
class ModuleLayout:
    """An architecture's parts.

    Attributes:
        blocks: path of the list of blocks; all other paths start at a block.
        attn: the attention module, called by the block.
        qkv: the modules that make q, k and v, in the order they are called; or the one that makes all three.
        by_head: the one module lays q, k and v out head by head, not side by side.
        out: the module that mixes the heads: its input is z, its weight W_O.
        attn_out, mlp_out: modules whose output is added to the residual stream.
        mlp: the modules that hold the MLP's weights.
        middle: the module whose input is resid_mid; None where attention and MLP run in parallel.
        pattern: path whose output is the attention pattern, which then weighs the values; None where there is none to be had.
        positions: how tokens know where they are: standard (learned), rotary or alibi.
        cached: the module takes and returns a Hugging Face cache.
    """

    blocks: str
    attn: str
    qkv: tuple[str, ...]
    out: str
    attn_out: str
    mlp: tuple[str, ...]
    mlp_out: str
    resid_mid: str | None
    pattern: str | None
    by_head: bool = False
    positions: Literal["standard", "rotary", "alibi"] = "rotary"
    takes_cache: bool = True


def _make_layout(
    blocks: str,
    attn: str,
    qkv: str,
    out: str,
    ffn: str = "mlp",
    middle: str | None = None,
    **more: Any,
) -> ModuleLayout:
    """A layout whose q, k, v and output projections stand inside the attention, and whose outputs are those of attention and MLP."""
    parts = {
        "attn_out": attn,
        "mlp": (ffn,),
        "mlp_out": ffn,
        "pattern": f"{attn}.{SHARED_PATTERN}",
    } | more
    return ModuleLayout(
        blocks,
        attn,
        tuple(f"{attn}.{name}" for name in qkv.split()),
        f"{attn}.{out}",
        resid_mid=middle,
        **parts,
    )


_LLAMA = _make_layout(
    "model.layers", "self_attn", "q_proj k_proj v_proj", "o_proj", middle="post_attention_layernorm"
)
_GPT2 = _make_layout(
    "transformer.h", "attn", "c_attn", "c_proj", middle="ln_2", positions="standard"
)
_NEOX = _make_layout("gpt_neox.layers", "attention", "query_key_value", "dense", by_head=True)
_OPT = _make_layout(
    "model.decoder.layers",
    "self_attn",
    "q_proj k_proj v_proj",
    "out_proj",
    "fc2",
    "final_layer_norm",
    mlp=("fc1", "fc2"),
    positions="standard",
)
_GEMMA2 = replace(
    _LLAMA,
    attn_out="post_attention_layernorm",
    resid_mid="pre_feedforward_layernorm",
    mlp_out="post_feedforward_layernorm",
)

LAYOUTS: Mapping[str, ModuleLayout] = {
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neo": _make_layout(
        "transformer.h",
        "attn.attention",
        "q_proj k_proj v_proj",
        "out_proj",
        middle="ln_2",
        positions="standard",
        pattern="attn.attention.attn_dropout",
    ),
    "gptj": _make_layout(
        "transformer.h", "attn", "q_proj k_proj v_proj", "out_proj", pattern="attn.attn_dropout"
    ),
    "gpt_neox": _NEOX,
    "opt": _OPT,
    "bloom": _make_layout(
        "transformer.h",
        "self_attention",
        "query_key_value",
        "dense",
        middle="post_attention_layernorm",
        by_head=True,
        positions="alibi",
        attn_out="self_attention.dense",  # the residual stream is added inside the attention and the MLP
        mlp_out="mlp.dense_4h_to_h",
        pattern="self_attention.attention_dropout",
    ),
    **dict.fromkeys(
        (
            "llama",
            "mistral",
            "qwen2",
            "qwen3",
            "gemma",
            "starcoder2",
            "mixtral",
            "qwen2_moe",
            "qwen3_moe",
        ),
        _LLAMA,
    ),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA2),
    "mpt": _make_layout(
        "transformer.blocks",
        "attn",
        "Wqkv",
        "out_proj",
        "ffn.down_proj",  # the residual stream is added inside the MLP
        "norm_2",
        mlp=("ffn",),
        positions="alibi",
        pattern="attn.source.nn_functional_dropout_0",
    ),
    "olmo2": replace(
        _LLAMA,
        attn_out="post_attention_layernorm",
        resid_mid="mlp",
        mlp_out="post_feedforward_layernorm",
    ),
    "phi": _make_layout("model.layers", "self_attn", "q_proj k_proj v_proj", "dense"),
    "phi3": _make_layout(
        "model.layers", "self_attn", "qkv_proj", "o_proj", middle="post_attention_layernorm"
    ),
    "xglm": replace(
        _OPT, blocks="model.layers", pattern=None
    ),  # its pattern has heads and prompts in one dimension
}
NATIVE_LAYOUT = _make_layout(
    "layers", "attn", "q k v", "o", middle="ln2", pattern="attn.source.pattern_1", takes_cache=False
)


def find_layout(config: Any) -> ModuleLayout:
    """The layout of a Hugging Face configuration.

    Raises:
        ModelError: where there is none, or a setting moves the parts elsewhere.
    """
    kind = str(config.model_type)
    if kind not in LAYOUTS:
        cause = f"The nnsight backend does not know where models of type {kind!r} keep their heads."
        raise ModelError(
            cause, f"Use backend 'transformerlens'. It knows {', '.join(sorted(LAYOUTS))}."
        )
    if kind == "gpt_neox" and not config.use_parallel_residual:
        return replace(_NEOX, resid_mid="post_attention_layernorm")
    strange = {
        "opt": ("do_layer_norm_before", True),  # else each norm stands behind the sum
        "bloom": ("apply_residual_connection_post_layernorm", False),
        "gpt_bigcode": ("multi_query", True),
    }
    name, usual = strange.get(kind, ("", None))
    if name and getattr(config, name) is not usual:
        raise ModelError(
            f"The nnsight backend takes {kind} with {name} = {usual} only.",
            "Use backend 'transformerlens'.",
        )
    return LAYOUTS[kind]
