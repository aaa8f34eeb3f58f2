"""SAEs written by SAELens: with known directions, or random ones of every architecture."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "standard": {},
    "topk": {"k": 5},
    "topk rescaled": {"k": 5, "rescale_acts_by_decoder_norm": True},
    "abstopk": {"k": 5},
    "jumprelu": {},
    "gated": {},
    "matching_pursuit": {"max_iterations": 4},
    "transcoder": {},
    "skip_transcoder": {},
    "jumprelu_transcoder": {},
    "jumprelu_skip_transcoder": {},
    "temporal": {"n_heads": 1, "bottleneck_factor": 4, "kval_topk": 5},
}


# Hook points of one layer, of every kind of site that an SAE of the tests has.
SAE_HOOKS = [
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
    "attn.hook_z",
    "attn.hook_q",
]


def saelens() -> Any:
    """Import SAELens, and keep what it prints off stdout."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens
    return sae_lens


def random_module(
    name: str,
    d_in: int,
    d_sae: int,
    hook: str,
    *,
    d_out: int | None = None,
    hook_out: str | None = None,
    seed: int = 0,
    **cfg: Any,
):
    """Make a SAELens module with random weights, biases and thresholds."""
    from sae_lens.registry import get_sae_class

    architecture = name.split()[0]
    kind, config = get_sae_class(architecture)
    settings = {"d_in": d_in, "d_sae": d_sae, **ARCHITECTURES.get(name, {}), **cfg}
    if "transcoder" in architecture:
        settings |= {"d_out": d_out or d_in, "apply_b_dec_to_input": False}
    module = kind(config(**settings))
    module.cfg.metadata.hook_name = hook
    if hook_out:
        module.cfg.metadata.hook_name_out = hook_out
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in sorted(module.named_parameters()):
            drawn = torch.randn(parameter.shape, generator=rng)
            if parameter_name == "threshold":
                parameter.copy_((0.1 * drawn).abs())
            else:
                parameter.copy_(drawn * (0.1 if parameter.ndim == 1 else d_in**-0.5))
    return module


def directions_module(directions: Tensor, hook: str, **metadata: Any):
    """Make a standard SAE in which feature f is ReLU(<x, d_f>) and writes along d_f.

    Args:
        directions: [feature d_in]. The rows are orthonormal, or opposite to one another.
        metadata: SAELens's metadata of the module.
    """
    module = saelens().StandardSAE(
        saelens().StandardSAEConfig(d_in=directions.shape[1], d_sae=len(directions))
    )
    with torch.no_grad():
        module.W_enc.copy_(directions.T)
        module.W_dec.copy_(directions)
        module.b_enc.zero_()
        module.b_dec.zero_()
    module.cfg.metadata.hook_name = hook
    for name, value in metadata.items():
        setattr(module.cfg.metadata, name, value)
    return module


def signed_basis(d_in: int, seed: int | None = None) -> Tensor:
    """Return the unit vectors and their opposites, with which reconstruction is exact.

    Args:
        seed: turn them by a random rotation; None leaves them as they are.
    """
    basis = torch.eye(d_in)
    if seed is not None:
        basis = torch.linalg.qr(
            torch.randn(
                d_in, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
            )
        )[0].float()
    return torch.cat([basis, -basis])


def save(module: Any, folder: Path) -> Path:
    """Save a module as SAELens does."""
    module.save_model(folder)
    return folder
