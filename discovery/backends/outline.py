"""What a model is before its weights are loaded: from its configuration alone, on torch's meta device, which holds shapes and no numbers.

from discovery.backends.outline import outline
outline("bundled").n_params            # 882304; a hub name fetches its configuration only
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import safe_open
from torch import nn

from discovery.backends.base import Width
from discovery.backends.describe import Shape, context, vocabulary
from discovery.backends.huggingface import TOKENIZER_FILES, Source, first_line, read_config
from discovery.backends.layout import LAYOUTS
from discovery.backends.load import find_source
from discovery.backends.native import native_module, read_native_config
from discovery.errors import ModelError


@dataclass(frozen=True)
class Outline:
    """A model that is not loaded.

    Attributes:
        architecture: class name of the module that would be loaded.
        n_kv_heads: fewer than n_heads where heads share keys and values (grouped-query attention).
        n_params: tied weights count once.
        weights_bytes: what the weights take in memory at `dtype`; loading and measuring come on top.
        backends: those that know the architecture, by its name alone: whether they reproduce it is found out at load.
        tokenizer: the directory has one; else prompts are token ids.
    """

    name: str
    source: str
    revision: str | None
    architecture: str
    dtype: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    n_ctx: int
    n_params: int
    weights_bytes: int
    attn_only: bool
    backends: tuple[str, ...]
    tokenizer: bool

    @property
    def n_nodes(self) -> int:
        """Heads and MLPs: the universe that a circuit is found in."""
        return self.n_layers * (self.n_heads + (0 if self.attn_only else 1))


def outline(name: str | Path = "bundled", *, dtype: str = "float32") -> Outline:
    """Describe a model without loading its weights.

    Args:
        name: as in `load_model`.
        dtype: in which the weights would be loaded.

    Raises:
        ModelError: the name is no model, or not one that can be run.
    """
    if dtype not in get_args(Width):
        raise ModelError(f"dtype {dtype!r} is not known.", f"Allowed: {', '.join(get_args(Width))}.")
    source = find_source(str(name), weights=False)
    with contextlib.redirect_stdout(sys.stderr):  # TransformerLens and its friends print
        if (source.directory / "tl_config.json").is_file():
            config = read_native_config(source.directory)
            with torch.device("meta"):
                module, cfg = native_module(config, source.directory.name, torch.float32)
            _give_biases(module, source.directory)
            return _outline(source, module, Shape.of_native(cfg), dtype, config["d_vocab"], config["n_ctx"], ("transformerlens", "nnsight"))
        config = read_config(source.directory, weights=False)
        module = _empty_module(source.directory)
        known = ("transformerlens", "nnsight") if config["model_type"] in LAYOUTS else ("transformerlens",)
        return _outline(source, module, Shape.of_hugging_face(module.config), dtype, vocabulary(module), context(config), known)


def _outline(source: Source, module: Any, shape: Shape, dtype: str, d_vocab: int, n_ctx: int, backends: tuple[str, ...]) -> Outline:
    n_params = sum(parameter.numel() for parameter in module.parameters())
    return Outline(
        name=source.name,
        source=source.name if source.name == "bundled" or source.revision else str(source.directory),
        revision=source.revision,
        architecture=type(module).__name__,
        dtype=dtype,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_kv_heads,
        d_model=shape.d_model,
        d_head=shape.d_head,
        d_vocab=d_vocab,
        n_ctx=n_ctx,
        n_params=n_params,
        weights_bytes=n_params * torch.finfo(getattr(torch, dtype)).bits // 8,
        attn_only=shape.attn_only,
        backends=backends,
        tokenizer=any((source.directory / name).is_file() for name in TOKENIZER_FILES),
    )


def _empty_module(directory: Path) -> nn.Module:
    """The module that the directory's config.json describes, with shapes and no weights.

    Raises:
        ModelError: where transformers does not take the configuration.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory, local_files_only=True))  # type: ignore[no-any-return]
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError, StrictDataclassError) as fault:
        cause = f"{directory.name}: transformers does not take its config.json ({type(fault).__name__})."
        raise ModelError(cause, "Check that it is that of a causal language model.", detail=first_line(fault)) from fault


def _give_biases(module: Any, directory: Path) -> None:
    """Loading gives a native module the output biases that its checkpoint has and its own layers lack."""
    path = directory / "model.safetensors"
    names: set[str] = set()
    if path.is_file():
        with safe_open(path, framework="pt") as file:  # its header only
            names = set(file.keys())
    linears = [module.head] if "unembed.b_U" in names else []
    linears += [layer.mlp.out for layer in module.layers if hasattr(getattr(layer, "mlp", None), "gate")]
    for linear in linears:
        if linear.bias is None:
            linear.bias = nn.Parameter(torch.empty(linear.out_features, device="meta"))
