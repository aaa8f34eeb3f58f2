"""What a model is before its weights are loaded.

A model's module is built from its configuration alone, on torch's meta device, where tensors have
shapes and no numbers. From this module follow the sizes, the memory that loading takes, and which
backends support the architecture. Of a hub model everything but the weights is downloaded.

    from discovery.backends.loading.outline import read_outline
    read_outline("bundled").n_params            # 882304
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from discovery.backends.info import ModelDescription, bytes_per_number, require_dtype
from discovery.backends.loading.description import (
    ModelShape,
    count_copied_weights,
    count_macs,
    count_parameters,
    count_stacked_weights,
    read_module_context_length,
    read_vocabulary_size,
)
from discovery.backends.loading.gguf.configuration import describes_tokenizer, read_config
from discovery.backends.loading.gguf.convert import saved_dtype
from discovery.backends.loading.gguf.header import read_header
from discovery.backends.loading.huggingface import (
    CONFIG_ERRORS,
    build_meta_module,
    config_error,
    has_tokenizer,
)
from discovery.backends.loading.native import (
    NATIVE_WEIGHTS,
    build_uninitialised_native,
    read_native_config,
)
from discovery.backends.loading.source import (
    BUNDLED,
    ModelLocation,
    damaged_weights_error,
    locate_model,
    require_supported_config,
)
from discovery.backends.nnsight.layout import find_layout
from discovery.errors import ModelError, first_line
from discovery.sites import BackendName

BackendKind = Literal["transformerlens", "nnsight"]
BACKEND_LABELS: Mapping[BackendKind, str] = {
    "transformerlens": "TransformerLens",
    "nnsight": "nnsight",
}


class UnknownShapeError(ModelError):
    """A configuration does not say how large the model's parts are; the model may still load."""


@dataclass(frozen=True, kw_only=True)
class Outline(ModelDescription):
    """A model that is not loaded. `copied` is counted for TransformerLens.

    Attributes:
        stacked: how many weights are stacked from several of the files'.
        saved: the dtype of the weights in the files.
        quantised: how the weights are quantised, as the configuration names it, or None.
        backends: the backends that support the architecture, going by its name. Whether they
            reproduce the model's numbers is tested when it is loaded.
        unknown: why the other backend does not support it, or "".
        tokenizer: whether the directory has a tokenizer; if not, prompts must be token ids.
    """

    stacked: int
    saved: str
    quantised: str | None
    backends: tuple[BackendKind, ...]
    unknown: str
    tokenizer: bool

    @property
    def n_nodes(self) -> int:
        """The number of heads and MLPs, among which a circuit is sought."""
        return self.n_layers * (self.n_heads + (0 if self.attn_only else 1))

    @property
    def copied_bytes(self) -> int:
        """The bytes of the loaded model that hold weights a second time."""
        return self.itemsize * self.copied

    @property
    def stacked_bytes(self) -> int:
        """The bytes of the weights that are stacked from several of the files'."""
        return self.itemsize * self.stacked

    @property
    def loading_bytes(self) -> int:
        """The most bytes in use while the model is loaded on a CPU.

        Weights that are saved in the dtype that is asked for stay in their files, which are mapped
        into memory. Weights of another dtype are made anew beside the files' own, and so are
        stacked ones.
        """
        n_new = self.stacked if self.saved == self.dtype else self.n_params + self.stacked
        peak = bytes_per_number(self.saved) * self.n_params + self.itemsize * n_new
        return max(peak, self.weights_bytes)

    def as_held_by(self, backend: BackendKind) -> Outline:
        """Return the outline with the weights that this backend would hold."""
        return self if backend == "transformerlens" else replace(self, copied=0)

    def resolve_backend(self, backend: BackendName) -> BackendKind:
        """Return the backend that was asked for, or the first that supports the model for "auto".

        `choose_backend` also weighs size and memory.

        Raises:
            ModelError: if the backend that was asked for does not support the model.
        """
        if backend == "auto":
            return self.backends[0]
        if backend not in self.backends:
            raise ModelError(self.unknown, f"Use backend {' or '.join(map(repr, self.backends))}.")
        return backend


def read_outline(name: str | Path = BUNDLED, *, dtype: str = "float32") -> Outline:
    """Describe a model without loading its weights.

    Args:
        name: the model, as `load_model` takes it.
        dtype: the dtype in which the weights would be loaded.

    Raises:
        ModelError: if there is no such model, or if it cannot be run.
    """
    require_dtype(dtype)
    location = locate_model(str(name), weights=False)
    with contextlib.redirect_stdout(sys.stderr):  # TransformerLens prints
        return read_outline_at(location, dtype)


def read_outline_at(location: ModelLocation, dtype: str) -> Outline:
    """Describe the model in a directory.

    Raises:
        UnknownShapeError: if the configuration does not say how large the model's parts are.
        ModelError: if the model cannot be run.
    """
    if location.is_native:
        return _outline_native(location, dtype)
    if location.gguf:
        return _outline_gguf(location, dtype)
    return _outline_hugging_face(location, dtype)


def build_empty_module(directory: Path) -> tuple[Any, torch.dtype | None]:
    """Build the Hugging Face module that config.json describes, without weights.

    Returns:
        The module on the meta device, and the dtype in which its weights were saved.

    Raises:
        ModelError: if transformers does not take the configuration.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        saved = config.dtype  # building the module changes it
    except (*CONFIG_ERRORS, OSError, StrictDataclassError) as fault:
        raise config_error(directory.name, fault) from fault
    return build_meta_module(config, directory.name), saved


def find_supporting_backends(config: Any) -> tuple[tuple[BackendKind, ...], str]:
    """Return the backends that support a Hugging Face configuration, and why nnsight does not.

    Whether they reproduce the model's numbers is tested when it is loaded.
    """
    try:
        find_layout(config)
    except ModelError as fault:
        return ("transformerlens",), fault.cause
    return ("transformerlens", "nnsight"), ""


def add_output_biases(module: Any, directory: Path) -> None:
    """Give an empty native module the output biases that loading the checkpoint gives it.

    Raises:
        ModelError: if the weight file is damaged.
    """
    linears = [module.head] if "unembed.b_U" in _read_weight_names(directory) else []
    for layer in module.layers:
        mlp: Any = getattr(layer, "mlp", None)
        if hasattr(mlp, "gate"):
            linears.append(mlp.out)
    for linear in linears:
        if linear.bias is None:
            linear.bias = nn.Parameter(torch.empty(linear.out_features, device="meta"))


def _read_weight_names(directory: Path) -> set[str]:
    """Read the names of a native checkpoint's weights from the header of its file."""
    path = directory / NATIVE_WEIGHTS
    if not path.is_file():
        return set()
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except SafetensorError as fault:
        raise damaged_weights_error(f"{directory.name}/{NATIVE_WEIGHTS}", fault) from None


def _outline_hugging_face(location: ModelLocation, dtype: str) -> Outline:
    directory = location.directory
    require_supported_config(directory, weights=False)
    module, saved = build_empty_module(directory)
    label = f"{directory.name}/config.json"
    return _outline_module(location, module, label, dtype=dtype, saved=saved or torch.float32)


def _outline_gguf(location: ModelLocation, dtype: str) -> Outline:
    """Describe a GGUF model from its header alone, as it is when it has been converted."""
    header = read_header(location.gguf)
    name = header.path.name
    module = build_meta_module(read_config(header), name, "header")
    saved: torch.dtype = getattr(torch, saved_dtype(dtype))
    outline = _outline_module(location, module, name, dtype=dtype, saved=saved)
    return replace(outline, quantisation=header.quantisation, tokenizer=describes_tokenizer(header))


def _outline_module(
    location: ModelLocation, module: Any, label: str, *, dtype: str, saved: torch.dtype
) -> Outline:
    """Build the outline of an empty module of transformers.

    Args:
        location: where the model comes from.
        module: the module on the meta device.
        label: the file that describes the model, for the message.
        dtype: the dtype in which the weights would be loaded.
        saved: the dtype in which they are saved.

    Raises:
        UnknownShapeError: if the configuration does not say how large the model's parts are.
    """
    try:
        shape = ModelShape.of_hugging_face(module.config)
        d_vocab = read_vocabulary_size(module)
        n_logits = int(module.get_output_embeddings().weight.shape[0])
    except (AttributeError, TypeError, ValueError, ZeroDivisionError) as fault:
        raise UnknownShapeError(
            f"{label} does not give the sizes of a {type(module).__name__} in a known way "
            f"({type(fault).__name__}).",
            "Load it to see what it is.",
            detail=first_line(fault),
        ) from fault
    backends, unknown = find_supporting_backends(module.config)
    return _make_outline(
        location,
        module,
        shape,
        dtype=dtype,
        saved=saved,
        d_vocab=d_vocab,
        n_logits=n_logits,
        n_ctx=read_module_context_length(module),
        copied=count_copied_weights(str(module.config.model_type), shape),
        stacked=count_stacked_weights(module),
        backends=backends,
        unknown=unknown,
    )


def _outline_native(location: ModelLocation, dtype: str) -> Outline:
    config = read_native_config(location.directory)
    module: Any
    with torch.device("meta"):
        module, cfg = build_uninitialised_native(config, torch.float32)
    add_output_biases(module, location.directory)
    # The conversion makes all weights anew in float32, the dtype of its result.
    stacked = count_parameters(module) if dtype == "float32" else count_stacked_weights(module)
    return _make_outline(
        location,
        module,
        ModelShape.of_transformerlens(cfg),
        dtype=dtype,
        saved=torch.float32,
        d_vocab=config.d_vocab,
        n_logits=int(module.head.out_features),
        n_ctx=config.n_ctx,
        copied=0,
        stacked=stacked,
        backends=get_args(BackendKind),
        unknown="",
    )


def _make_outline(
    location: ModelLocation,
    module: Any,
    shape: ModelShape,
    *,
    dtype: str,
    saved: torch.dtype,
    d_vocab: int,
    n_logits: int,
    n_ctx: int,
    copied: int,
    stacked: int,
    backends: tuple[BackendKind, ...],
    unknown: str,
) -> Outline:
    """Build the outline of an empty module.

    Raises:
        UnknownShapeError: if the module has no list of its layers.
    """
    return Outline(
        **vars(shape),
        name=location.name,
        source=location.source,
        revision=location.revision,
        architecture=type(module).__name__,
        dtype=dtype,
        d_vocab=d_vocab,
        d_vocab_out=None if n_logits == d_vocab else n_logits,
        n_ctx=n_ctx,
        n_params=count_parameters(module),
        copied=copied,
        stacked=stacked,
        saved=str(saved).removeprefix("torch."),
        quantised=_quantisation_method(getattr(module, "config", None)),
        macs_attention=shape.macs_attention,
        macs_mlp=_count_mlp_macs(module, shape),
        backends=backends,
        unknown=unknown,
        tokenizer=has_tokenizer(location.directory),
    )


def _count_mlp_macs(module: Any, shape: ModelShape) -> int:
    """Count an MLP's multiply-adds at one position: those of a block without its attention's.

    Raises:
        UnknownShapeError: if the module has no list of its layers.
    """
    for part in module.modules():
        if isinstance(part, nn.ModuleList) and len(part) == shape.n_layers:
            return 0 if shape.attn_only else count_macs([part[0]], module) - shape.macs_attention
    raise UnknownShapeError(
        f"A {type(module).__name__} has no list of its {shape.n_layers} layers.",
        "Load it to see what it is.",
    )


def _quantisation_method(config: Any) -> str | None:
    settings = getattr(config, "quantization_config", None)
    if not isinstance(settings, dict) or not settings:
        return None
    return str(settings.get("quant_method", "unknown"))
