"""A model's module as its configuration describes it, on torch's meta device: with shapes, and no numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from discovery.errors import ModelError, first_line


def empty_module(directory: Path) -> tuple[Any, torch.dtype | None]:
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
            return AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32), saved
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError, StrictDataclassError) as fault:
        cause = f"{directory.name}: transformers does not take its config.json ({type(fault).__name__})."
        raise ModelError(cause, "Check that it is that of a causal language model.", detail=first_line(fault)) from fault


def give_biases(module: Any, directory: Path) -> None:
    """Loading gives a native module the output biases that its checkpoint has and its own layers lack."""
    path = directory / "model.safetensors"
    names: set[str] = set()
    if path.is_file():
        try:
            with safe_open(path, framework="pt") as file:  # its header only
                names = set(file.keys())
        except SafetensorError as fault:
            raise ModelError(f"{directory.name}/model.safetensors is damaged.", "Save or download it again.", detail=str(fault)) from None
    linears = [module.head] if "unembed.b_U" in names else []
    linears += [layer.mlp.out for layer in module.layers if hasattr(getattr(layer, "mlp", None), "gate")]
    for linear in linears:
        if linear.bias is None:
            linear.bias = nn.Parameter(torch.empty(linear.out_features, device="meta"))
