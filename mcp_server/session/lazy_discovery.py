"""The part of `discovery` that needs torch. Each name is imported when a call first uses it.

So the server answers `tools/list` before any heavy library is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from discovery.agent import (
        DiscoveryResult,
        add_features_to_run,
        discover,
        estimate_cost,
        is_finished,
        resume_open_run,
    )
    from discovery.backends.hardware.devices import choose_device
    from discovery.backends.hardware.memory import (
        MemoryWatch,
        read_free_memory,
        release_memory,
    )
    from discovery.backends.hardware.placement import Placement
    from discovery.backends.loading.backend_choice import (
        choose_backend,
        estimate_load_memory,
        plan_load,
        require_fit,
    )
    from discovery.backends.loading.load import load_model
    from discovery.backends.loading.outline import read_outline
    from discovery.backends.loading.source import locate_model
    from discovery.backends.remote.status import listen_to_status
    from discovery.engine import Engine, MemoryNeed, Meter
    from discovery.evaluation import evaluate_circuit
    from discovery.features import open_sae
    from discovery.features.training import continue_training, estimate_training, train_sae
    from discovery.methods.ablation import ablate_heads
    from discovery.methods.behaviour import check_task
    from discovery.methods.controls import compare_with_controls
    from discovery.methods.edits import run_with_edits
    from discovery.methods.features import (
        Sampling,
        edit_features,
        feature_examples,
        generate_with_features,
        sae_top_features,
    )
    from discovery.methods.heads import attention_patterns, head_kinds, head_weights, interpret_head
    from discovery.methods.patching import Cell, patch_sweep, top_cells
    from discovery.methods.probes import probe
    from discovery.methods.prompt_run import run_with_cache, summarise_activation
    from discovery.methods.readout import direct_logit_attribution, logit_lens
    from discovery.report import draw_heatmap
    from discovery.report.techniques import (
        draw_bar_panels,
        draw_bars,
        draw_head_kinds,
        draw_lens,
        draw_pattern,
        draw_probe,
        draw_token_changes,
    )

_MODULES = {
    "Cell": "discovery.methods.patching",
    "DiscoveryResult": "discovery.agent",
    "Engine": "discovery.engine",
    "MemoryNeed": "discovery.engine",
    "Meter": "discovery.engine",
    "MemoryWatch": "discovery.backends.hardware.memory",
    "Placement": "discovery.backends.hardware.placement",
    "Sampling": "discovery.methods.features",
    "ablate_heads": "discovery.methods.ablation",
    "add_features_to_run": "discovery.agent",
    "attention_patterns": "discovery.methods.heads",
    "check_task": "discovery.methods.behaviour",
    "choose_backend": "discovery.backends.loading.backend_choice",
    "choose_device": "discovery.backends.hardware.devices",
    "compare_with_controls": "discovery.methods.controls",
    "continue_training": "discovery.features.training",
    "direct_logit_attribution": "discovery.methods.readout",
    "discover": "discovery.agent",
    "draw_bar_panels": "discovery.report.techniques",
    "draw_bars": "discovery.report.techniques",
    "draw_head_kinds": "discovery.report.techniques",
    "draw_heatmap": "discovery.report",
    "draw_lens": "discovery.report.techniques",
    "draw_pattern": "discovery.report.techniques",
    "draw_probe": "discovery.report.techniques",
    "draw_token_changes": "discovery.report.techniques",
    "edit_features": "discovery.methods.features",
    "estimate_cost": "discovery.agent",
    "estimate_load_memory": "discovery.backends.loading.backend_choice",
    "estimate_training": "discovery.features.training",
    "evaluate_circuit": "discovery.evaluation",
    "feature_examples": "discovery.methods.features",
    "generate_with_features": "discovery.methods.features",
    "head_kinds": "discovery.methods.heads",
    "head_weights": "discovery.methods.heads",
    "interpret_head": "discovery.methods.heads",
    "is_finished": "discovery.agent",
    "listen_to_status": "discovery.backends.remote.status",
    "load_model": "discovery.backends.loading.load",
    "locate_model": "discovery.backends.loading.source",
    "logit_lens": "discovery.methods.readout",
    "open_sae": "discovery.features",
    "patch_sweep": "discovery.methods.patching",
    "plan_load": "discovery.backends.loading.backend_choice",
    "probe": "discovery.methods.probes",
    "read_free_memory": "discovery.backends.hardware.memory",
    "read_outline": "discovery.backends.loading.outline",
    "release_memory": "discovery.backends.hardware.memory",
    "require_fit": "discovery.backends.loading.backend_choice",
    "resume_open_run": "discovery.agent",
    "run_with_cache": "discovery.methods.prompt_run",
    "run_with_edits": "discovery.methods.edits",
    "sae_top_features": "discovery.methods.features",
    "summarise_activation": "discovery.methods.prompt_run",
    "top_cells": "discovery.methods.patching",
    "train_sae": "discovery.features.training",
}

__all__ = [
    "Cell",
    "DiscoveryResult",
    "Engine",
    "MemoryNeed",
    "MemoryWatch",
    "Meter",
    "Placement",
    "Sampling",
    "ablate_heads",
    "add_features_to_run",
    "attention_patterns",
    "check_task",
    "choose_backend",
    "choose_device",
    "compare_with_controls",
    "continue_training",
    "direct_logit_attribution",
    "discover",
    "draw_bar_panels",
    "draw_bars",
    "draw_head_kinds",
    "draw_heatmap",
    "draw_lens",
    "draw_pattern",
    "draw_probe",
    "draw_token_changes",
    "edit_features",
    "estimate_cost",
    "estimate_load_memory",
    "estimate_training",
    "evaluate_circuit",
    "feature_examples",
    "generate_with_features",
    "head_kinds",
    "head_weights",
    "interpret_head",
    "is_finished",
    "listen_to_status",
    "load_model",
    "locate_model",
    "logit_lens",
    "open_sae",
    "pack_safetensors",
    "patch_sweep",
    "plan_load",
    "probe",
    "read_free_memory",
    "read_outline",
    "release_memory",
    "require_fit",
    "resume_open_run",
    "run_with_cache",
    "run_with_edits",
    "sae_top_features",
    "summarise_activation",
    "top_cells",
    "train_sae",
]


def pack_safetensors(
    tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return tensors in the safetensors format.

    The format refuses two names for one storage, which is common here: the end of a layer is the
    start of the next. So every tensor is copied.
    """
    save = importlib.import_module("safetensors.torch").save
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    packed: bytes = save(copies, metadata)
    return packed


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
