"""Find the circuit behind a language model's behaviour, and test whether the claim holds.

    from discovery import load_model, load_task, patch_sweep, ablate_heads, discover

The names of this package are loaded when they are first used (PEP 562). Importing any submodule
runs this file, so it must not import torch or a model library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from discovery.agent import discover
    from discovery.backends.loading.load import load_model
    from discovery.evaluation import evaluate_circuit
    from discovery.features import load_sae
    from discovery.features.training import train_sae
    from discovery.graph import CircuitGraph
    from discovery.methods.ablation import ablate_heads
    from discovery.methods.behaviour import check_task
    from discovery.methods.edits import EditSet, cell_edits, run_with_edits
    from discovery.methods.features import (
        add_features,
        edit_features,
        feature_examples,
        generate_with_features,
        sae_top_features,
    )
    from discovery.methods.heads import attention_patterns, head_kinds, head_weights, interpret_head
    from discovery.methods.patching import patch_sweep
    from discovery.methods.probes import probe
    from discovery.methods.prompt_run import run_with_cache
    from discovery.methods.readout import direct_logit_attribution, logit_lens
    from discovery.tasks import load_task

_MODULE_OF = {
    "CircuitGraph": "discovery.graph",
    "EditSet": "discovery.methods.edits",
    "ablate_heads": "discovery.methods.ablation",
    "add_features": "discovery.methods.features",
    "attention_patterns": "discovery.methods.heads",
    "cell_edits": "discovery.methods.edits",
    "check_task": "discovery.methods.behaviour",
    "direct_logit_attribution": "discovery.methods.readout",
    "discover": "discovery.agent",
    "edit_features": "discovery.methods.features",
    "evaluate_circuit": "discovery.evaluation",
    "feature_examples": "discovery.methods.features",
    "generate_with_features": "discovery.methods.features",
    "head_kinds": "discovery.methods.heads",
    "head_weights": "discovery.methods.heads",
    "interpret_head": "discovery.methods.heads",
    "load_model": "discovery.backends.loading.load",
    "load_sae": "discovery.features",
    "load_task": "discovery.tasks",
    "logit_lens": "discovery.methods.readout",
    "patch_sweep": "discovery.methods.patching",
    "probe": "discovery.methods.probes",
    "run_with_cache": "discovery.methods.prompt_run",
    "run_with_edits": "discovery.methods.edits",
    "sae_top_features": "discovery.methods.features",
    "train_sae": "discovery.features.training",
}

__all__ = [
    "CircuitGraph",
    "EditSet",
    "ablate_heads",
    "add_features",
    "attention_patterns",
    "cell_edits",
    "check_task",
    "direct_logit_attribution",
    "discover",
    "edit_features",
    "evaluate_circuit",
    "feature_examples",
    "generate_with_features",
    "head_kinds",
    "head_weights",
    "interpret_head",
    "load_model",
    "load_sae",
    "load_task",
    "logit_lens",
    "patch_sweep",
    "probe",
    "run_with_cache",
    "run_with_edits",
    "sae_top_features",
    "train_sae",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'discovery' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
