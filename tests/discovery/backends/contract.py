"""What the contract tests share: prompts, sites, random edits and tolerances."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.random_models.tiny_models import VOCAB
from discovery.interventions import Edit, add, replace_with, scale
from discovery.sites import ActivationKind, Site
from tests.oracles.models.hooked_module import Change

LOCAL_BACKENDS = ("transformerlens", "nnsight")
ALL_BACKENDS = (*LOCAL_BACKENDS, "remote")  # "remote" is nnsight's simulation of a server

ROWS = 3
WIDTH = 7
LENGTHS = torch.tensor([7, 5, 6])
KINDS: tuple[ActivationKind, ...] = (
    "resid_pre",
    "q",
    "k",
    "v",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_out",
    "resid_post",
)
SEQUENTIAL = ("gpt2", "llama", "mistral", "qwen2", "gemma")
# In float64. Some norms and softmaxes of Hugging Face stay in float32.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def tokens_of(seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (ROWS, WIDTH), generator=torch.Generator().manual_seed(seed))


def has_site(architecture: str, site: ActivationKind) -> bool:
    if architecture == "opt" and site == "q":
        return False  # Hugging Face scales it after the projection, and backends differ in that
    return site != "resid_mid" or architecture in SEQUENTIAL


def at_answer(logits: Tensor) -> Tensor:
    return logits[torch.arange(ROWS), LENGTHS - 1]


def shape_of(model: Any, site: Site) -> tuple[int, ...]:
    if site.kind in ("q", "z", "k", "v"):
        return (
            ROWS,
            WIDTH,
            model.info.n_heads if site.kind in "qz" else model.info.n_kv_heads,
            model.info.d_head,
        )
    return ROWS, WIDTH, model.info.d_model


def random_edit(
    model: Any, site: Site, operation: str, rng: torch.Generator
) -> tuple[Edit, Change]:
    """An edit in random places, as a value and as a function."""
    shape = shape_of(model, site)
    value = torch.randn(shape, generator=rng, dtype=torch.float64)
    where = torch.rand(shape[:-1], generator=rng) < 0.4
    where[torch.arange(ROWS), LENGTHS - 1] = True
    inside = where.unsqueeze(-1)
    if operation == "replace":
        return replace_with(site, value, where), lambda a: torch.where(inside, value, a)
    if operation == "add":
        return add(site, value, where), lambda a: a + inside * value
    return scale(site, -1.5, where), lambda a: torch.where(inside, -1.5 * a, a)
