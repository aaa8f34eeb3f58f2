"""Where each architecture keeps its sites: the modules whose inputs and outputs they are.

A layout is found by Hugging Face's `model_type`. The site attn_out or mlp_out is what is added to
the residual stream: if a norm follows the attention or the MLP (Gemma 2 and 3, OLMo 2), it is the
output of that norm. An architecture that is not in the table is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from discovery.errors import ModelError, SiteError
from discovery.sites import ActivationKind, Site

QKV = ("q", "k", "v")

# Most architectures of transformers share one attention function. The output of its dropout is the
# attention pattern that weighs the values.
SHARED_PATTERN = "source.attention_interface_1.source.nn_functional_dropout_0"
# Once TransformerLens has wrapped a Gemma 2 or 3, its wrapper stands in front of that function for
# every other architecture in the process.
WRAPPED_PATTERN = (
    "source.attention_interface_1.source._ORIGINAL_EAGER_ATTENTION_FORWARD_0"
    ".source.nn_functional_dropout_0"
)


@dataclass(frozen=True, kw_only=True)
class ModuleLayout:
    """The module paths of an architecture.

    Attributes:
        blocks: the list of blocks; all other paths start at a block.
        attn: the attention module that the block calls.
        qkv: the modules that compute q, k and v, in the order of their calls; or the one module
            that computes all three.
        qkv_is_by_head: the one module's output has q, k and v of each head together, and not all
            heads of q, then all of k, then all of v.
        output_projection: the module that mixes the heads: z is its input, W_O its weight.
        attn_out: the module whose output the attention adds to the residual stream.
        mlp: the modules that hold the MLP's weights.
        mlp_out: the module whose output the MLP adds to the residual stream.
        resid_mid: the module whose input is resid_mid; None if attention and MLP run in parallel.
        pattern: the operation whose output is the attention pattern; None if it cannot be traced.
        positional_embedding: standard (learned), rotary or alibi.
        takes_cache: the module takes and returns a Hugging Face cache.
    """

    blocks: str
    attn: str
    qkv: tuple[str, ...]
    output_projection: str
    attn_out: str
    mlp: tuple[str, ...]
    mlp_out: str
    resid_mid: str | None
    pattern: str | None
    qkv_is_by_head: bool = False
    positional_embedding: Literal["standard", "rotary", "alibi"] = "rotary"
    takes_cache: bool = True

    def locate(self, kind: ActivationKind) -> tuple[tuple[str, ...], Literal["input", "output"]]:
        """Return what carries a site, and on which side.

        Returns:
            Paths within a block ("" is the block itself), of which the first that exists is meant;
            and whether the site is its input or its output.
        """
        if kind in QKV:
            return (self.qkv[QKV.index(kind) % len(self.qkv)],), "output"
        if kind in ("resid_pre", "resid_post"):
            return ("",), "input" if kind == "resid_pre" else "output"
        inputs = {"z": self.output_projection, "resid_mid": self.resid_mid}
        outputs = {"attn_out": self.attn_out, "mlp_out": self.mlp_out, "pattern": self.pattern}
        path = inputs[kind] if kind in inputs else outputs[kind]
        assert path is not None  # such a site is refused before a run
        paths = [path]
        if path.endswith(SHARED_PATTERN):
            paths.append(path.removesuffix(SHARED_PATTERN) + WRAPPED_PATTERN)
        return tuple(paths), "input" if kind in inputs else "output"

    @property
    def source_traced_module(self) -> str | None:
        """The module in whose source code the pattern is traced; None if it is a module itself."""
        if self.pattern is None or ".source." not in self.pattern:
            return None
        return self.pattern.partition(".source.")[0]


def require_pattern_path(layout: ModuleLayout, architecture: str, sites: Iterable[Site]) -> None:
    """Check that the attention pattern can be traced, if it is among the sites.

    Raises:
        SiteError: if it cannot.
    """
    if layout.pattern is None and any(site.kind == "pattern" for site in sites):
        raise SiteError(
            f"The nnsight backend has no attention pattern of this architecture ({architecture}).",
            "Patch z, q, k or v instead.",
        )


def _make_layout(
    blocks: str,
    attn: str,
    qkv: str,
    output_projection: str,
    mlp_module: str = "mlp",
    resid_mid: str | None = None,
    **settings: Any,
) -> ModuleLayout:
    """Return a layout with the usual defaults, which `settings` replace.

    q, k, v and the output projection are inside the attention. The outputs of the attention and of
    the MLP are what they add to the residual stream.
    """
    defaults = {
        "blocks": blocks,
        "attn": attn,
        "qkv": tuple(f"{attn}.{name}" for name in qkv.split()),
        "output_projection": f"{attn}.{output_projection}",
        "attn_out": attn,
        "mlp": (mlp_module,),
        "mlp_out": mlp_module,
        "resid_mid": resid_mid,
        "pattern": f"{attn}.{SHARED_PATTERN}",
    }
    return ModuleLayout(**(defaults | settings))


_LLAMA = _make_layout(
    "model.layers",
    "self_attn",
    "q_proj k_proj v_proj",
    "o_proj",
    resid_mid="post_attention_layernorm",
)
_GPT2 = _make_layout(
    "transformer.h", "attn", "c_attn", "c_proj", resid_mid="ln_2", positional_embedding="standard"
)
_NEOX = _make_layout(
    "gpt_neox.layers", "attention", "query_key_value", "dense", qkv_is_by_head=True
)
_OPT = _make_layout(
    "model.decoder.layers",
    "self_attn",
    "q_proj k_proj v_proj",
    "out_proj",
    "fc2",
    "final_layer_norm",
    mlp=("fc1", "fc2"),
    positional_embedding="standard",
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
        resid_mid="ln_2",
        positional_embedding="standard",
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
        resid_mid="post_attention_layernorm",
        qkv_is_by_head=True,
        positional_embedding="alibi",
        # The residual stream is added inside the attention and inside the MLP.
        attn_out="self_attention.dense",
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
        positional_embedding="alibi",
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
        "model.layers", "self_attn", "qkv_proj", "o_proj", resid_mid="post_attention_layernorm"
    ),
    # XGLM's attention pattern has heads and prompts in one dimension.
    "xglm": replace(_OPT, blocks="model.layers", pattern=None),
}
NATIVE_LAYOUT = _make_layout(
    "layers",
    "attn",
    "q k v",
    "o",
    resid_mid="ln2",
    pattern="attn.source.pattern_1",
    takes_cache=False,
)


def find_layout(config: Any) -> ModuleLayout:
    """Return the layout of a Hugging Face configuration.

    Raises:
        ModelError: if the architecture is not known, or a setting changes where its sites are.
    """
    model_type = str(config.model_type)
    if model_type not in LAYOUTS:
        raise ModelError(
            f"The nnsight backend does not know where models of type {model_type!r} keep their "
            "heads.",
            f"Use backend 'transformerlens'. It knows {', '.join(sorted(LAYOUTS))}.",
        )
    if model_type == "gpt_neox" and not config.use_parallel_residual:
        return replace(_NEOX, resid_mid="post_attention_layernorm")
    required_settings = {
        "opt": ("do_layer_norm_before", True),  # otherwise each norm follows the sum
        "bloom": ("apply_residual_connection_post_layernorm", False),
        "gpt_bigcode": ("multi_query", True),
    }
    if model_type in required_settings:
        name, value = required_settings[model_type]
        if getattr(config, name) is not value:
            raise ModelError(
                f"The nnsight backend supports {model_type} only with {name} = {value}.",
                "Use backend 'transformerlens'.",
            )
    return LAYOUTS[model_type]
