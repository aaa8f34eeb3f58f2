"""The half of `discovery` that needs torch, imported name by name when a call first uses it.

`tools/list` is answered before any of it is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from discovery.agent import Discovered, add_features_to_run, discover, estimate, go_on
    from discovery.backends.hardware.devices import choose_device
    from discovery.backends.hardware.memory import free_memory, give_back
    from discovery.backends.hardware.placement import Spread
    from discovery.backends.loading.backend_choice import choose, require_room, taken, unfit
    from discovery.backends.loading.load import load_model
    from discovery.backends.loading.outline import outline
    from discovery.backends.loading.source import find_source
    from discovery.backends.remote.status import listening
    from discovery.engine import Engine, Meter, Need
    from discovery.evaluation import evaluate_circuit
    from discovery.features import open_sae
    from discovery.features.training import estimate_training, go_on_training, train_sae
    from discovery.methods.ablation import ablate_heads
    from discovery.methods.behaviour import check_task
    from discovery.methods.controls import contrast
    from discovery.methods.features import Sampling, edit_features, feature_examples, generate_with_features, sae_top_features
    from discovery.methods.patching.sweep import patch_sweep
    from discovery.methods.prompt_run import run_with_cache
    from discovery.methods.summary import Cell, summarise, top_cells
    from discovery.report import heatmap

_HOMES = {
    "Cell": "discovery.methods.summary",
    "Discovered": "discovery.agent",
    "Engine": "discovery.engine",
    "Meter": "discovery.engine",
    "Need": "discovery.engine",
    "Sampling": "discovery.methods.features",
    "Spread": "discovery.backends.hardware.placement",
    "ablate_heads": "discovery.methods.ablation",
    "add_features_to_run": "discovery.agent",
    "check_task": "discovery.methods.behaviour",
    "choose": "discovery.backends.loading.backend_choice",
    "choose_device": "discovery.backends.hardware.devices",
    "contrast": "discovery.methods.controls",
    "discover": "discovery.agent",
    "edit_features": "discovery.methods.features",
    "estimate": "discovery.agent",
    "estimate_training": "discovery.features.training",
    "evaluate_circuit": "discovery.evaluation",
    "feature_examples": "discovery.methods.features",
    "find_source": "discovery.backends.loading.source",
    "free_memory": "discovery.backends.hardware.memory",
    "generate_with_features": "discovery.methods.features",
    "give_back": "discovery.backends.hardware.memory",
    "go_on": "discovery.agent",
    "go_on_training": "discovery.features.training",
    "heatmap": "discovery.report",
    "listening": "discovery.backends.remote.status",
    "load_model": "discovery.backends.loading.load",
    "open_sae": "discovery.features",
    "outline": "discovery.backends.loading.outline",
    "patch_sweep": "discovery.methods.patching.sweep",
    "run_with_cache": "discovery.methods.prompt_run",
    "require_room": "discovery.backends.loading.backend_choice",
    "sae_top_features": "discovery.methods.features",
    "summarise": "discovery.methods.summary",
    "taken": "discovery.backends.loading.backend_choice",
    "top_cells": "discovery.methods.summary",
    "train_sae": "discovery.features.training",
    "unfit": "discovery.backends.loading.backend_choice",
}

__all__ = [
    "Cell",
    "Discovered",
    "Engine",
    "Meter",
    "Need",
    "Sampling",
    "Spread",
    "ablate_heads",
    "add_features_to_run",
    "check_task",
    "choose",
    "choose_device",
    "contrast",
    "discover",
    "edit_features",
    "estimate",
    "estimate_training",
    "evaluate_circuit",
    "feature_examples",
    "find_source",
    "free_memory",
    "generate_with_features",
    "give_back",
    "go_on",
    "go_on_training",
    "heatmap",
    "listening",
    "load_model",
    "open_sae",
    "outline",
    "pack",
    "patch_sweep",
    "require_room",
    "run_with_cache",
    "sae_top_features",
    "summarise",
    "taken",
    "top_cells",
    "train_sae",
    "unfit",
]


def pack(tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> bytes:
    """Tensors as safetensors, which holds no two names of one storage: the end of a layer is the start of the next."""
    save = importlib.import_module("safetensors.torch").save
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    packed: bytes = save(own, metadata)
    return packed


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
