"""TransformerLens's own checkpoint format becomes TransformerLens's native module.

The format is that of most toy models in the field: `tl_config.json` and `model.safetensors`, with
the parameter names and shapes of a HookedTransformer (`blocks.0.attn.W_Q` [head d_model d_head] …).
TransformerLens loads none of these names into its native module, and says so only in a return
value. So the weights are converted here one by one, and a missing, unknown or misshapen one is an
error.

Two conventions are folded into W_Q and W_K, which leaves every attention score as it was: the
attention scale (the native module divides by √d_head), and HookedTransformer's rotary layout (it
rotates halves of a head, the native module rotates adjacent pairs).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from discovery.backends.loading.source import NATIVE_CONFIG, damaged_weights_error
from discovery.errors import ModelError, first_line

NATIVE_WEIGHTS = "model.safetensors"
REQUIRED_FIELDS = ("n_layers", "d_model", "n_heads", "n_ctx", "d_vocab")
POSITIONAL_EMBEDDINGS = ("standard", "rotary")
NORMALIZATIONS = ("LN", "LNPre", "RMS", "RMSPre")  # or null; upper and lower case do not matter
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
"""Options of HookedTransformer that the native module lacks, with the only value it implements."""

CONVERTED_SETTINGS = ("self", "dtype", "seed", "attn_scale", "use_attn_scale")
"""Fields that are not passed on to the native module: the conversion applies them, if anything."""

IGNORED_BUFFERS = re.compile(r"(.*\.)?(mask|IGNORE|rotary_sin|rotary_cos)")
ACTIVATION_ALIASES = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new"}


@dataclass(frozen=True)
class NativeConfig:
    """A tl_config.json that the native module supports.

    Attributes:
        directory_name: the name of the model directory, for messages.
        settings: the fields of the file, with defaults filled in.
    """

    directory_name: str
    settings: Mapping[str, Any]

    @property
    def n_layers(self) -> int:
        return int(self.settings["n_layers"])

    @property
    def n_heads(self) -> int:
        return int(self.settings["n_heads"])

    @property
    def n_kv_heads(self) -> int:
        return int(self.settings.get("n_key_value_heads") or self.n_heads)

    @property
    def d_model(self) -> int:
        return int(self.settings["d_model"])

    @property
    def d_head(self) -> int:
        return int(self.settings["d_head"])

    @property
    def d_vocab(self) -> int:
        """The number of token ids."""
        return int(self.settings["d_vocab"])

    @property
    def n_logits(self) -> int:
        """The number of logits; d_vocab_out is absent or -1 if it is the number of token ids."""
        d_vocab_out = self.settings.get("d_vocab_out", -1)
        return int(d_vocab_out) if d_vocab_out and d_vocab_out > 0 else self.d_vocab

    @property
    def n_ctx(self) -> int:
        return int(self.settings["n_ctx"])

    @property
    def attn_only(self) -> bool:
        return bool(self.settings.get("attn_only"))

    @property
    def gated_mlp(self) -> bool:
        return bool(self.settings.get("gated_mlp"))

    @property
    def final_rms(self) -> bool:
        return bool(self.settings.get("final_rms"))

    @property
    def normalization(self) -> str | None:
        """LN, LNPRE, RMS or RMSPRE, or None for a model without norms."""
        kind = self.settings.get("normalization_type", "LN")
        return None if kind is None else str(kind).upper()

    def attention_scale(self, layer: int) -> float:
        """Return the number by which HookedTransformer divides the attention scores of a layer."""
        scale = 1.0
        if self.settings.get("use_attn_scale", True):
            explicit = float(self.settings.get("attn_scale", -1.0) or -1.0)
            scale = explicit if explicit > 0 else math.sqrt(self.d_head)
        by_layer = self.settings.get("scale_attn_by_inverse_layer_idx")
        return scale * (layer + 1) if by_layer else scale

    @property
    def rotary_order(self) -> Tensor:
        """For each dimension of the native layout of a head, the HookedTransformer's dimension."""
        order = torch.arange(self.d_head)
        is_rotary = self.settings.get("positional_embedding_type") == "rotary"
        if not is_rotary or self.settings.get("rotary_adjacent_pairs"):
            return order
        n_rotated = self.settings.get("rotary_dim") or self.d_head
        pairs = order[:n_rotated].reshape(2, n_rotated // 2).T.reshape(-1)
        return torch.cat([pairs, order[n_rotated:]])


def read_native_config(directory: Path) -> NativeConfig:
    """Read and check a directory's tl_config.json.

    Raises:
        ModelError: if it is damaged or incomplete, or uses an option that the native module lacks.
    """
    settings = _read_settings(directory)
    name = directory.name
    missing = [
        field
        for field in REQUIRED_FIELDS
        if type(settings.get(field)) is not int or settings[field] < 1
    ]
    if missing:
        raise ModelError(
            f"{name}/tl_config.json lacks {', '.join(missing)}.",
            f"It needs {', '.join(REQUIRED_FIELDS)} as integers.",
        )
    for field, allowed in FIXED_SETTINGS.items():
        if settings.get(field, allowed) not in (allowed, None):
            raise ModelError(
                f"{name}: {field} = {settings[field]!r} is not supported.",
                f"Native models need {field} = {allowed!r}.",
            )
    positions = settings.get("positional_embedding_type") or "standard"
    if positions not in POSITIONAL_EMBEDDINGS:
        raise ModelError(
            f"{name}: positional_embedding_type {positions!r} is not supported.",
            f"Allowed: {', '.join(POSITIONAL_EMBEDDINGS)}.",
        )
    norm = settings.get("normalization_type", "LN")
    if norm is not None and str(norm).upper() not in [kind.upper() for kind in NORMALIZATIONS]:
        raise ModelError(
            f"{name}: normalization_type {norm!r} is not supported.",
            f"Allowed: {', '.join(NORMALIZATIONS)}, null.",
        )
    settings.setdefault("d_head", settings["d_model"] // settings["n_heads"])
    if norm is None:
        settings["final_rms"] = False  # HookedTransformer then has no final norm either
    return NativeConfig(name, settings)


def _read_settings(directory: Path) -> dict[str, Any]:
    """Read tl_config.json.

    Raises:
        ModelError: if it is not a JSON object.
    """
    try:
        settings = json.loads((directory / NATIVE_CONFIG).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as fault:
        raise ModelError(
            f"{directory.name}/tl_config.json is not JSON ({type(fault).__name__}).",
            "Save the configuration again.",
        ) from None
    if not isinstance(settings, dict):
        raise ModelError(
            f"{directory.name}/tl_config.json is a {type(settings).__name__}, not an object.",
            "Save the configuration again.",
        )
    return settings


def describe_unknown_fields(config: NativeConfig) -> tuple[str, ...]:
    """Return a warning about fields that TransformerLens does not have, such as misspelt ones.

    The result is empty if there are none.
    """
    from transformer_lens.config import HookedTransformerConfig

    known = {field.name for field in fields(HookedTransformerConfig)} | {"final_rms"}
    unknown = sorted(set(config.settings) - known)
    if not unknown:
        return ()
    return (
        "tl_config.json has fields that TransformerLens does not have and that do nothing: "
        f"{', '.join(unknown)}",
    )


def build_native(
    config: NativeConfig, directory: Path, dtype: torch.dtype, device: str
) -> tuple[nn.Module, Any]:
    """Load the native module with the checkpoint's weights, in evaluation mode and frozen.

    Returns:
        The module, and its TransformerLens configuration.

    Raises:
        ModelError: if a weight is missing, unknown or misshapen, or if the native module does not
            accept a setting.
    """
    path = directory / NATIVE_WEIGHTS
    if not path.is_file():
        raise ModelError(
            f"{directory.name} has no model.safetensors.",
            "Save the state dict with safetensors.torch.save_file.",
        )
    try:
        weights = load_file(path)
    except SafetensorError as fault:
        raise damaged_weights_error(f"{directory.name}/{NATIVE_WEIGHTS}", fault) from None
    weights = {k: v for k, v in weights.items() if not IGNORED_BUFFERS.fullmatch(k)}
    module, cfg = build_uninitialised_native(config, dtype)
    state = _Converter(config, cfg.d_mlp, weights).convert(module)
    module.load_state_dict(state, strict=True)
    return module.to(device=device, dtype=dtype).eval().requires_grad_(False), cfg


def build_uninitialised_native(config: NativeConfig, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """Build the native module before it has its weights.

    Returns:
        The module, and its TransformerLens configuration.

    Raises:
        ModelError: if the native module does not accept a setting.
    """
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources.native.model import NativeModel

    accepted = set(TransformerBridgeConfig.__init__.__code__.co_varnames)
    accepted = (accepted | {"positional_embedding_type", "d_mlp"}) - set(CONVERTED_SETTINGS)
    settings = {name: value for name, value in config.settings.items() if name in accepted}
    activation = settings.get("act_fn", "relu")
    settings["act_fn"] = ACTIVATION_ALIASES.get(activation, activation)
    try:
        cfg = TransformerBridgeConfig.from_dict(
            {**settings, "architecture": "TransformerLensNative", "init_weights": False}
        )
        cfg.dtype = dtype
        return NativeModel(cfg), cfg
    except (ValueError, TypeError, NotImplementedError) as fault:
        # These texts name fields of the configuration and their values only, so users may see them.
        raise ModelError(
            f"{config.directory_name}/tl_config.json: {first_line(fault)}",
            "Correct the field that the message names.",
        ) from fault


@dataclass
class _Converter:
    """Turns a HookedTransformer's names and shapes into those of the native module.

    Attributes:
        config: the model's configuration.
        d_mlp: the width of the MLPs.
        weights: the weights by the HookedTransformer's names. Each conversion takes out what it
            uses, so that what is left in the end is unknown.
    """

    config: NativeConfig
    d_mlp: int
    weights: dict[str, Tensor]

    def convert(self, module: Any) -> dict[str, Tensor]:
        """Return the native module's state dict; the module gets the biases that it lacks.

        Raises:
            ModelError: if a weight is missing, unknown or misshapen.
        """
        config = self.config
        state = {"tok_embed.weight": self.take("embed.W_E", config.d_vocab, config.d_model)}
        if module.pos is not None:
            state["pos.weight"] = self.take("pos_embed.W_pos", config.n_ctx, config.d_model)
        for layer in range(config.n_layers):
            self.convert_attention(state, layer)
            if not config.attn_only:
                self.convert_mlp(state, layer, module.layers[layer].mlp)
        self.convert_norm(state, "ln_final", "ln_out", rms=config.final_rms)
        state["head.weight"] = self.take("unembed.W_U", config.d_model, config.n_logits).T
        if self.needs_bias(module, "head", "unembed.b_U"):
            state["head.bias"] = self.take("unembed.b_U", config.n_logits, optional=True)
        if self.weights:
            raise ModelError(
                f"{config.directory_name}: unknown weight {min(self.weights)!r}.",
                "Remove it, or set the option in tl_config.json that uses it.",
            )
        return {name: value.contiguous() for name, value in state.items()}

    def take(self, name: str, *shape: int, optional: bool = False) -> Tensor:
        """Take a weight out of the checkpoint; an optional one is zero if it is absent.

        Raises:
            ModelError: if it is missing or has another shape.
        """
        if name not in self.weights:
            if optional:
                return torch.zeros(shape)
            raise ModelError(
                f"{self.config.directory_name}: the weight {name!r} is missing.",
                f"It has shape {list(shape)}; only biases may be left out.",
            )
        value = self.weights.pop(name)
        if value.shape != shape:
            raise ModelError(
                f"{self.config.directory_name}: {name!r} has shape {list(value.shape)}.",
                f"tl_config.json asks for {list(shape)}.",
            )
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value

    def convert_attention(self, state: dict[str, Tensor], layer: int) -> None:
        """Convert the attention of a layer and the norm before it."""
        config = self.config
        source = f"blocks.{layer}.attn."
        target = f"layers.{layer}.attn."
        for slot in "QKV":
            weight, bias = self.convert_projection(source, slot, layer)
            count = weight.shape[0]
            weight = weight.permute(0, 2, 1).reshape(count * config.d_head, config.d_model)
            state[f"{target}{slot.lower()}.weight"] = weight
            state[f"{target}{slot.lower()}.bias"] = bias.reshape(-1)
        output = self.take(f"{source}W_O", config.n_heads, config.d_head, config.d_model)
        output = output.reshape(config.n_heads * config.d_head, config.d_model).T
        state[f"{target}o.weight"] = output
        state[f"{target}o.bias"] = self.take(f"{source}b_O", config.d_model, optional=True)
        self.convert_norm(state, f"blocks.{layer}.ln1", f"layers.{layer}.ln1")

    def convert_projection(self, source: str, slot: str, layer: int) -> tuple[Tensor, Tensor]:
        """Return weight [head d_model d_head] and bias [head d_head] of q, k or v.

        The attention scale and the rotary layout are folded in.
        """
        config = self.config
        count = config.n_heads if slot == "Q" else config.n_kv_heads
        # HookedTransformer writes shared keys and values with an underscore before the name.
        underscore = "_" if f"{source}_W_{slot}" in self.weights else ""
        weight = self.take(f"{source}{underscore}W_{slot}", count, config.d_model, config.d_head)
        bias = self.take(f"{source}{underscore}b_{slot}", count, config.d_head, optional=True)
        if slot == "Q":
            factor = math.sqrt(config.d_head) / config.attention_scale(layer)
            weight = weight * factor
            bias = bias * factor
        if slot in "QK":
            weight = weight[..., config.rotary_order]
            bias = bias[..., config.rotary_order]
        return weight, bias

    def convert_mlp(self, state: dict[str, Tensor], layer: int, module: Any) -> None:
        """Convert the MLP of a layer and the norm before it."""
        d_model = self.config.d_model
        source = f"blocks.{layer}.mlp."
        target = f"layers.{layer}.mlp."
        into, out = ("in", "out") if self.config.gated_mlp else ("fc_in", "fc_out")
        state[f"{target}{into}.weight"] = self.take(f"{source}W_in", d_model, self.d_mlp).T
        state[f"{target}{out}.weight"] = self.take(f"{source}W_out", self.d_mlp, d_model).T
        if self.config.gated_mlp:
            gate = self.take(f"{source}W_gate", d_model, self.d_mlp).T
            state[f"{target}gate.weight"] = gate
            # HookedTransformer adds b_in after the gate, so it acts as an output bias.
            b_in = self.take(f"{source}b_in", self.d_mlp, optional=True)
            b_out = self.take(f"{source}b_out", d_model, optional=True)
            self.weights[f"{source}b_out"] = b_out + state[f"{target}{out}.weight"] @ b_in
        elif self.needs_bias(module, into, f"{source}b_in"):
            state[f"{target}{into}.bias"] = self.take(f"{source}b_in", self.d_mlp, optional=True)
        if self.needs_bias(module, out, f"{source}b_out"):
            state[f"{target}{out}.bias"] = self.take(f"{source}b_out", d_model, optional=True)
        self.convert_norm(state, f"blocks.{layer}.ln2", f"layers.{layer}.ln2")

    def needs_bias(self, module: Any, child: str, name: str) -> bool:
        """Return whether a Linear of the native module takes a bias.

        If it has none and the checkpoint does, the Linear is replaced by one with a bias.
        """
        linear = getattr(module, child)
        if linear.bias is not None:
            return True
        if name not in self.weights:
            return False
        module.add_module(child, nn.Linear(linear.in_features, linear.out_features, bias=True))
        return True

    def convert_norm(
        self, state: dict[str, Tensor], name: str, target: str, *, rms: bool = False
    ) -> None:
        """Convert a norm, if it has weights; `rms` makes it an RMS norm whatever the others are."""
        kind = self.config.normalization
        if (kind is None and not rms) or (kind is not None and kind.endswith("PRE")):
            return
        state[f"{target}.weight"] = self.take(f"{name}.w", self.config.d_model)
        if not rms and kind == "LN":
            state[f"{target}.bias"] = self.take(f"{name}.b", self.config.d_model, optional=True)
