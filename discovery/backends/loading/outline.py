"""The engines there are, and which of them knows a model.

A model's module as its configuration describes it, on torch's meta device: with shapes, and no numbers.

What a model is before its weights are loaded: from its configuration alone, on torch's meta device, which holds shapes and no numbers.

from discovery.backends.loading.outline import outline
outline("bundled").n_params            # 882304; of a hub name all but the weights is fetched
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
    count_stacked_weights,
    read_module_context_length,
    read_vocabulary_size,
)
from discovery.backends.loading.huggingface import TOKENIZER_FILES
from discovery.backends.loading.native import (
    NATIVE_CONFIG,
    build_uninitialised_native,
    read_native_config,
)
from discovery.backends.loading.source import ModelLocation, locate_model, require_supported_config
from discovery.backends.nnsight.layout import find_layout
from discovery.errors import ModelError, first_line
from discovery.sites import BackendName

BackendKind = Literal["transformerlens", "nnsight"]
BACKEND_LABELS: Mapping[BackendKind, str] = {
    "transformerlens": "TransformerLens",
    "nnsight": "nnsight",
}


def find_supporting_backends(config: Any) -> tuple[tuple[BackendKind, ...], str]:
    """Which engines know a Hugging Face configuration, and why the other does not. Whether they reproduce it is found out at load."""
    try:
        find_layout(config)
    except ModelError as fault:
        return ("transformerlens",), fault.cause
    return ("transformerlens", "nnsight"), ""


def build_empty_module(directory: Path) -> tuple[Any, torch.dtype | None]:
    """The module that the directory's config.json describes, with shapes and no weights, and the width its weights were saved in.

    Raises:
        ModelError: where transformers does not take the configuration.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        saved = config.dtype
        with torch.device("meta"):
            # float32 is torch's default: another would be everybody's for a moment, in a server that measures meanwhile
            return AutoModelForCausalLM.from_config(
                config, attn_implementation="eager", dtype=torch.float32
            ), saved
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        OSError,
        StrictDataclassError,
    ) as fault:
        cause = f"{directory.name}: transformers does not take its config.json ({type(fault).__name__})."
        raise ModelError(
            cause, "Check that it is that of a causal language model.", detail=first_line(fault)
        ) from fault


def add_output_biases(module: Any, directory: Path) -> None:
    """Loading gives a native module the output biases that its checkpoint has and its own layers lack."""
    path = directory / "model.safetensors"
    names: set[str] = set()
    if path.is_file():
        try:
            with safe_open(path, framework="pt") as file:  # its header only
                names = set(file.keys())
        except SafetensorError as fault:
            raise ModelError(
                f"{directory.name}/model.safetensors is damaged.",
                "Save or download it again.",
                detail=str(fault),
            ) from None
    linears = [module.head] if "unembed.b_U" in names else []
    linears += [
        layer.mlp.out for layer in module.layers if hasattr(getattr(layer, "mlp", None), "gate")
    ]
    for linear in linears:
        if linear.bias is None:
            linear.bias = nn.Parameter(torch.empty(linear.out_features, device="meta"))


class UnknownShapeError(ModelError):
    """A model whose configuration does not say how large its parts are. It may load all the same."""


@dataclass(frozen=True, kw_only=True)
class Outline(ModelDescription):
    """A model that is not loaded; `copied` is for TransformerLens.

    Attributes:
        stacked: how many weights are put together from several of the files'.
        saved: dtype of the files; quantised: how they are packed beyond that, as their configuration names it.
        backends: those that know the architecture, by its name alone: whether they reproduce it is found out at load.
        unknown: why another does not.
        tokenizer: the directory has one; else prompts are token ids.
    """

    stacked: int
    saved: str
    quantised: str | None
    backends: tuple[BackendKind, ...]
    unknown: str
    tokenizer: bool

    @property
    def n_nodes(self) -> int:
        """Heads and MLPs: the universe that a circuit is found in."""
        return self.n_layers * (self.n_heads + (0 if self.attn_only else 1))

    @property
    def copied_bytes(self) -> int:
        """Of what the loaded model takes, what is held twice."""
        return self.itemsize * self.copied

    @property
    def stacked_bytes(self) -> int:
        """What is put together from several of the files' weights."""
        return self.itemsize * self.stacked

    @property
    def loading_bytes(self) -> int:
        """The most in use while it is loaded on a CPU.

        Weights that are saved as they are wanted stay in their files, which are mapped; others are made beside these, and so are
        those that are put together.
        """
        made = self.stacked if self.saved == self.dtype else self.n_params + self.stacked
        return max(
            bytes_per_number(self.saved) * self.n_params + self.itemsize * made, self.weights_bytes
        )

    def as_held_by(self, engine: BackendKind) -> Outline:
        """As one engine would hold it."""
        return self if engine == "transformerlens" else replace(self, copied=0)

    def resolve_backend(self, backend: BackendName) -> BackendKind:
        """The first that knows it, or the one that is asked for. `backends.choose` weighs them.

        Raises:
            ModelError: where the backend that is asked for does not know it.
        """
        if backend == "auto":
            return self.backends[0]
        if backend not in self.backends:
            raise ModelError(self.unknown, f"Use backend {' or '.join(map(repr, self.backends))}.")
        return backend


def read_outline(name: str | Path = "bundled", *, dtype: str = "float32") -> Outline:
    """Describe a model without loading its weights.

    Args:
        name: as in `load_model`.
        dtype: in which the weights would be loaded.

    Raises:
        ModelError: the name is no model, or not one that can be run.
    """
    require_dtype(dtype)
    source = locate_model(str(name), weights=False)
    with contextlib.redirect_stdout(sys.stderr):  # TransformerLens and its friends print
        return read_outline_at(source, dtype)


def read_outline_at(source: ModelLocation, dtype: str) -> Outline:
    """Describe the model at a place.

    Raises:
        ModelError: as `outline`.
    """
    if (source.directory / NATIVE_CONFIG).is_file():
        return _outline_native(source, dtype)
    return _outline_hugging_face(source, dtype)


def _outline_hugging_face(source: ModelLocation, dtype: str) -> Outline:
    require_supported_config(source.directory, weights=False)
    module, saved = build_empty_module(source.directory)
    try:
        shape, d_vocab = ModelShape.of_hugging_face(module.config), read_vocabulary_size(module)
        n_logits = int(module.get_output_embeddings().weight.shape[0])
    except (AttributeError, TypeError, ValueError, ZeroDivisionError) as fault:
        cause = f"{source.directory.name}/config.json does not say how a {type(module).__name__} has its heads ({type(fault).__name__})."
        raise UnknownShapeError(
            cause, "Load it to see what it is.", detail=first_line(fault)
        ) from fault
    twice = count_copied_weights(str(module.config.model_type), shape)
    return _make_outline(
        source,
        module,
        shape,
        dtype,
        (d_vocab, n_logits, read_module_context_length(module)),
        saved or torch.float32,
        twice,
        find_supporting_backends(module.config),
    )


def _outline_native(source: ModelLocation, dtype: str) -> Outline:
    config = read_native_config(source.directory)
    module: Any
    with torch.device("meta"):
        module, cfg = build_uninitialised_native(config, source.directory.name, torch.float32)
    add_output_biases(module, source.directory)
    vocabularies = config["d_vocab"], int(module.head.out_features), config["n_ctx"]
    return _make_outline(
        source,
        module,
        ModelShape.of_native(cfg),
        dtype,
        vocabularies,
        torch.float32,
        0,
        (get_args(BackendKind), ""),
        is_converted=dtype == "float32",
    )


def _make_outline(
    source: ModelLocation,
    module: Any,
    shape: ModelShape,
    dtype: str,
    vocabularies: tuple[int, int, int],
    saved: torch.dtype,
    copied: int,
    engines: tuple[tuple[BackendKind, ...], str],
    *,
    is_converted: bool = False,  # every weight is made anew from the files'
) -> Outline:
    d_vocab, n_logits, n_ctx = vocabularies
    n_params = sum(parameter.numel() for parameter in module.parameters())
    blocks = next(
        (
            part
            for part in module.modules()
            if isinstance(part, nn.ModuleList) and len(part) == shape.n_layers
        ),
        None,
    )
    if blocks is None:
        raise UnknownShapeError(
            f"A {type(module).__name__} has no list of its {shape.n_layers} layers.",
            "Load it to see what it is.",
        )
    return Outline(
        **vars(shape),
        name=source.name,
        source=source.name
        if source.name == "bundled" or source.revision
        else str(source.directory),
        revision=source.revision,
        architecture=type(module).__name__,
        dtype=dtype,
        d_vocab=d_vocab,
        d_vocab_out=None if n_logits == d_vocab else n_logits,
        n_ctx=n_ctx,
        n_params=n_params,
        copied=copied,
        stacked=n_params if is_converted else count_stacked_weights(module),
        saved=str(saved).removeprefix("torch."),
        quantised=_quantisation_method(getattr(module, "config", None)),
        macs_attention=shape.macs_attention,
        macs_mlp=0 if shape.attn_only else count_macs([blocks[0]], module) - shape.macs_attention,
        backends=engines[0],
        unknown=engines[1],
        tokenizer=any((source.directory / name).is_file() for name in TOKENIZER_FILES),
    )


def _quantisation_method(config: Any) -> str | None:
    said = getattr(config, "quantization_config", None)
    return str(said.get("quant_method", "unknown")) if isinstance(said, dict) and said else None
