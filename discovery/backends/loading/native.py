"""TransformerLens's own checkpoint format (`tl_config.json` + `model.safetensors`) becomes TransformerLens's native module.

The format of most toy models in the field: parameter names and shapes of a HookedTransformer (`blocks.0.attn.W_Q`
[head d_model d_head] …). TransformerLens loads none of these names into a native bridge and says so only in a return
value, so they are converted here, one by one, and nothing missing, unknown or misshapen passes. Two conventions are folded
into W_Q and W_K, which leaves every attention score as it was: the attention scale (the native module divides by √d_head),
and HookedTransformer's rotary layout (it rotates halves, the native module adjacent pairs).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from discovery.errors import ModelError

NATIVE_CONFIG = "tl_config.json"
REQUIRED_FIELDS = ("n_layers", "d_model", "n_heads", "n_ctx", "d_vocab")
FIXED_SETTINGS = {
    "attention_dir": "causal",
    "parallel_attn_mlp": False,
    "use_local_attn": False,
    "use_qk_norm": False,
    "post_embedding_ln": False,
    "num_experts": None,
    "use_normalization_before_and_after": False,
    "use_NTK_by_parts_rope": False,
    "use_dynamic_ntk_rope": False,
    "use_yarn_rope": False,
    "use_logn_attn": False,
    "use_attention_sinks": False,
    "rotary_scaling_factor": 1.0,
    "rope_scaling": None,
    "clip_qkv": None,
}
IGNORED_BUFFERS = re.compile(r"(.*\.)?(mask|IGNORE|rotary_sin|rotary_cos)")
ACTIVATION_ALIASES = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new"}


def read_native_config(directory: Path) -> dict[str, Any]:
    """The directory's tl_config.json.

    Raises:
        ModelError: damaged, incomplete, or with a feature the native module lacks.
    """
    try:
        config = json.loads((directory / NATIVE_CONFIG).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as fault:
        cause = f"{directory.name}/tl_config.json is not JSON ({type(fault).__name__})."
        raise ModelError(cause, "Save the configuration again.") from None
    if not isinstance(config, dict):
        raise ModelError(
            f"{directory.name}/tl_config.json is a {type(config).__name__}, not an object.",
            "Save the configuration again.",
        )
    if missing := [
        name for name in REQUIRED_FIELDS if type(config.get(name)) is not int or config[name] < 1
    ]:
        raise ModelError(
            f"{directory.name}/tl_config.json lacks {', '.join(missing)}.",
            f"It needs {', '.join(REQUIRED_FIELDS)} as integers.",
        )
    for name, allowed in FIXED_SETTINGS.items():
        if config.get(name, allowed) not in (allowed, None):
            raise ModelError(
                f"{directory.name}: {name} = {config[name]!r} is not supported.",
                f"Native models need {name} = {allowed!r}.",
            )
    positions = config.get("positional_embedding_type") or "standard"
    if positions not in ("standard", "rotary"):
        raise ModelError(
            f"{directory.name}: positional_embedding_type {positions!r} is not supported.",
            "Allowed: standard, rotary.",
        )
    norm = config.get("normalization_type", "LN")
    if norm is not None and str(norm).upper() not in ("LN", "LNPRE", "RMS", "RMSPRE"):
        raise ModelError(
            f"{directory.name}: normalization_type {norm!r} is not supported.",
            "Allowed: LN, LNPre, RMS, RMSPre, null.",
        )
    config.setdefault("d_head", config["d_model"] // config["n_heads"])
    if config.get("normalization_type", "LN") is None:
        config["final_rms"] = False  # as HookedTransformer has it: no normalisation at all
    return config


def describe_unknown_fields(config: dict[str, Any]) -> tuple[str, ...]:
    """Fields that TransformerLens does not know, told as a warning: a misspelt one would not act."""
    from transformer_lens.config import HookedTransformerConfig

    known = {field.name for field in fields(HookedTransformerConfig)} | {"final_rms"}
    unknown = sorted(set(config) - known)
    return (
        (
            f"tl_config.json has fields that TransformerLens does not know, and that do nothing: {', '.join(unknown)}",
        )
        if unknown
        else ()
    )


def build_native(directory: Path, dtype: torch.dtype, device: str) -> tuple[nn.Module, Any]:
    """The native module with the checkpoint's weights, frozen, and its TransformerLens configuration.

    Raises:
        ModelError: where a weight is missing, unknown or misshapen, or a setting is not one the native module has.
    """
    config = read_native_config(directory)
    path = directory / "model.safetensors"
    if not path.is_file():
        raise ModelError(
            f"{directory.name} has no model.safetensors.",
            "Save the state dict with safetensors.torch.save_file.",
        )
    try:
        weights = {
            name: value
            for name, value in load_file(path).items()
            if not IGNORED_BUFFERS.fullmatch(name)
        }
    except SafetensorError as fault:
        raise ModelError(
            f"{directory.name}/model.safetensors is damaged.",
            "Save or download it again.",
            detail=str(fault),
        ) from None
    module, cfg = build_uninitialised_native(config, directory.name, dtype)
    state = _Converter(config, cfg.d_mlp, weights, directory.name).convert(module)
    module.load_state_dict(state, strict=True)
    return module.to(device=device, dtype=dtype).eval().requires_grad_(False), cfg


def build_uninitialised_native(
    config: dict[str, Any], where: str, dtype: torch.dtype
) -> tuple[nn.Module, Any]:
    """The native module of a tl_config.json before it has its weights, and its TransformerLens configuration.

    Raises:
        ModelError: where a setting is not one the native module has.
    """
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources.native.model import NativeModel

    fields = set(TransformerBridgeConfig.__init__.__code__.co_varnames) | {
        "positional_embedding_type",
        "d_mlp",
    }
    settings = {
        k: v
        for k, v in config.items()
        if k in fields and k not in ("self", "dtype", "seed", "attn_scale", "use_attn_scale")
    }
    settings["act_fn"] = ACTIVATION_ALIASES.get(
        settings.get("act_fn", "relu"), settings.get("act_fn", "relu")
    )
    try:
        cfg = TransformerBridgeConfig.from_dict(
            {**settings, "architecture": "TransformerLensNative", "init_weights": False}
        )
        cfg.dtype = dtype
        return NativeModel(cfg), cfg
    except (ValueError, TypeError, NotImplementedError) as fault:
        # The configuration's checks name its own fields and values, and nothing else.
        raise ModelError(
            f"{where}/tl_config.json: {str(fault).splitlines()[0]}", "Correct the field it names."
        ) from fault


@dataclass
class _Converter:
    """Turns HookedTransformer's names and shapes into the native module's, taking each weight exactly once."""

    config: dict[str, Any]
    d_mlp: int
    weights: dict[str, Tensor]
    directory_name: str

    def convert(self, module: Any) -> dict[str, Tensor]:
        c = self.config
        d_model, vocab, out = c["d_model"], c["d_vocab"], c.get("d_vocab_out", -1)
        out = out if out and out > 0 else vocab
        state = {"tok_embed.weight": self.take("embed.W_E", vocab, d_model)}
        if module.pos is not None:
            state["pos.weight"] = self.take("pos_embed.W_pos", c["n_ctx"], d_model)
        for layer in range(c["n_layers"]):
            self.convert_attention(state, layer)
            if not c.get("attn_only"):
                self.convert_mlp(state, layer, module.layers[layer].mlp)
        self.convert_norm(state, "ln_final", "ln_out", rms=bool(c.get("final_rms")))
        state["head.weight"] = self.take("unembed.W_U", d_model, out).T
        self.convert_bias(state, "unembed.b_U", "head.bias", (out,), module, "head")
        if self.weights:
            cure = "Remove it, or set the option in tl_config.json that uses it."
            raise ModelError(f"{self.directory_name}: unknown weight {min(self.weights)!r}.", cure)
        return {name: value.contiguous() for name, value in state.items()}

    def take(self, name: str, *shape: int, optional: bool = False) -> Tensor:
        if name not in self.weights:
            if optional:
                return torch.zeros(shape)
            raise ModelError(
                f"{self.directory_name}: the weight {name!r} is missing.",
                f"It has shape {list(shape)}; only biases may be left out.",
            )
        value = self.weights.pop(name)
        if value.shape != shape:
            raise ModelError(
                f"{self.directory_name}: {name!r} has shape {list(value.shape)}.",
                f"tl_config.json asks for {list(shape)}.",
            )
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value

    def convert_attention(self, state: dict[str, Tensor], layer: int) -> None:
        c, at, to = self.config, f"blocks.{layer}.attn.", f"layers.{layer}.attn."
        heads, d_model, d_head = c["n_heads"], c["d_model"], c["d_head"]
        kv_heads = c.get("n_key_value_heads") or heads
        for slot, count in (("Q", heads), ("K", kv_heads), ("V", kv_heads)):
            hidden = "_" if f"{at}_W_{slot}" in self.weights else ""
            weight = self.take(f"{at}{hidden}W_{slot}", count, d_model, d_head)
            bias = self.take(f"{at}{hidden}b_{slot}", count, d_head, optional=True)
            if slot == "Q":
                factor = math.sqrt(d_head) / self.attention_scale(layer)
                weight, bias = weight * factor, bias * factor
            if slot in "QK":
                weight, bias = weight[..., self.rotary_order], bias[..., self.rotary_order]
            state[f"{to}{slot.lower()}.weight"] = weight.permute(0, 2, 1).reshape(
                count * d_head, d_model
            )
            state[f"{to}{slot.lower()}.bias"] = bias.reshape(-1)
        state[f"{to}o.weight"] = (
            self.take(f"{at}W_O", heads, d_head, d_model).reshape(heads * d_head, d_model).T
        )
        state[f"{to}o.bias"] = self.take(f"{at}b_O", d_model, optional=True)
        self.convert_norm(state, f"blocks.{layer}.ln1", f"layers.{layer}.ln1")

    def attention_scale(self, layer: int) -> float:
        """What HookedTransformer divides scores by."""
        given = float(self.config.get("attn_scale", -1.0) or -1.0)
        scale = (
            (given if given > 0 else math.sqrt(self.config["d_head"]))
            if self.config.get("use_attn_scale", True)
            else 1.0
        )
        return scale * (layer + 1) if self.config.get("scale_attn_by_inverse_layer_idx") else scale

    @property
    def rotary_order(self) -> Tensor:
        """Where each dimension of the native layout comes from."""
        order = torch.arange(self.config["d_head"])
        if self.config.get("positional_embedding_type") != "rotary" or self.config.get(
            "rotary_adjacent_pairs"
        ):
            return order
        width = self.config.get("rotary_dim") or self.config["d_head"]
        return torch.cat([order[:width].reshape(2, width // 2).T.reshape(-1), order[width:]])

    def convert_mlp(self, state: dict[str, Tensor], layer: int, module: Any) -> None:
        d_model, at, to = self.config["d_model"], f"blocks.{layer}.mlp.", f"layers.{layer}.mlp."
        gated = bool(self.config.get("gated_mlp"))
        into, out = ("in", "out") if gated else ("fc_in", "fc_out")
        state[f"{to}{into}.weight"] = self.take(f"{at}W_in", d_model, self.d_mlp).T
        state[f"{to}{out}.weight"] = self.take(f"{at}W_out", self.d_mlp, d_model).T
        if gated:
            state[f"{to}gate.weight"] = self.take(f"{at}W_gate", d_model, self.d_mlp).T
            b_in = self.take(
                f"{at}b_in", self.d_mlp, optional=True
            )  # HookedTransformer adds it behind the gate, so it is an output bias
            self.weights[f"{at}b_out"] = (
                self.take(f"{at}b_out", d_model, optional=True) + state[f"{to}{out}.weight"] @ b_in
            )
        else:
            self.convert_bias(state, f"{at}b_in", f"{to}{into}.bias", (self.d_mlp,), module, into)
        self.convert_bias(state, f"{at}b_out", f"{to}{out}.bias", (d_model,), module, out)
        self.convert_norm(state, f"blocks.{layer}.ln2", f"layers.{layer}.ln2")

    def convert_bias(
        self,
        state: dict[str, Tensor],
        name: str,
        target: str,
        shape: tuple[int, ...],
        module: Any,
        child: str,
    ) -> None:
        """A bias that the native module may not have yet: its Linear is then given one."""
        linear = getattr(module, child)
        if linear.bias is None:
            if name not in self.weights:
                return
            module.add_module(child, nn.Linear(linear.in_features, linear.out_features, bias=True))
        state[target] = self.take(name, *shape, optional=True)

    def convert_norm(
        self, state: dict[str, Tensor], name: str, target: str, *, rms: bool = False
    ) -> None:
        kind = self.config.get("normalization_type", "LN")
        if (kind is None and not rms) or str(kind).upper().endswith("PRE"):
            return
        d_model = self.config["d_model"]
        state[f"{target}.weight"] = self.take(f"{name}.w", d_model)
        if not rms and str(kind).upper() == "LN":
            state[f"{target}.bias"] = self.take(f"{name}.b", d_model, optional=True)
