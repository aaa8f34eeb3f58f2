"""The half of `discovery` that needs torch, imported name by name when a call first uses it.

`tools/list` is answered before any of it is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from discovery.agent import Discovered, add_features_to_run, discover, estimate, go_on
    from discovery.backends.choose import choose, require_room, taken, unfit
    from discovery.backends.device import choose_device
    from discovery.backends.find import find_source
    from discovery.backends.load import load_model
    from discovery.backends.memory import free_memory, give_back
    from discovery.backends.outline import outline
    from discovery.backends.spread import Spread
    from discovery.backends.waiting import listening
    from discovery.engine import Engine, Meter, Need
    from discovery.evaluation import evaluate_circuit
    from discovery.features import open_sae
    from discovery.features.training import estimate_training, go_on_training, train_sae
    from discovery.methods.ablation import ablate_heads
    from discovery.methods.behaviour import check_task
    from discovery.methods.cache import run_with_cache
    from discovery.methods.contrast import contrast
    from discovery.methods.features import Sampling, edit_features, feature_examples, generate_with_features, sae_top_features
    from discovery.methods.patching import patch_sweep
    from discovery.methods.summary import Cell, summarise, top_cells
    from discovery.report import heatmap

_HOMES = {
    "Cell": "discovery.methods.summary",
    "Discovered": "discovery.agent",
    "Engine": "discovery.engine",
    "Meter": "discovery.engine",
    "Need": "discovery.engine",
    "Sampling": "discovery.methods.features",
    "Spread": "discovery.backends.spread",
    "ablate_heads": "discovery.methods.ablation",
    "add_features_to_run": "discovery.agent",
    "check_task": "discovery.methods.behaviour",
    "choose": "discovery.backends.choose",
    "choose_device": "discovery.backends.device",
    "contrast": "discovery.methods.contrast",
    "discover": "discovery.agent",
    "edit_features": "discovery.methods.features",
    "estimate": "discovery.agent",
    "estimate_training": "discovery.features.training",
    "evaluate_circuit": "discovery.evaluation",
    "feature_examples": "discovery.methods.features",
    "find_source": "discovery.backends.find",
    "free_memory": "discovery.backends.memory",
    "generate_with_features": "discovery.methods.features",
    "give_back": "discovery.backends.memory",
    "go_on": "discovery.agent",
    "go_on_training": "discovery.features.training",
    "heatmap": "discovery.report",
    "listening": "discovery.backends.waiting",
    "load_model": "discovery.backends.load",
    "open_sae": "discovery.features",
    "outline": "discovery.backends.outline",
    "patch_sweep": "discovery.methods.patching",
    "run_with_cache": "discovery.methods.cache",
    "require_room": "discovery.backends.choose",
    "sae_top_features": "discovery.methods.features",
    "summarise": "discovery.methods.summary",
    "taken": "discovery.backends.choose",
    "top_cells": "discovery.methods.summary",
    "train_sae": "discovery.features.training",
    "unfit": "discovery.backends.choose",
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
