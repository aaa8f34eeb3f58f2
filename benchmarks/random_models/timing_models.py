"""Random models of ordinary size and random prompt pairs, to measure seconds and bytes on."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from discovery import load_task
from discovery.backends.base import Backend
from discovery.tasks.task import Task

FIRST_DIFFERENCE = 5  # the position from which on the two sides of a pair may differ
_COMMON_FIELDS = {
    "hidden_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "vocab_size": 8000,
}
_MIXTRAL_FIELDS = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_local_experts": 8,
}
# Models of 60 to 90 million parameters.
MODEL_CONFIGS: Mapping[str, dict[str, Any]] = {
    "GPT2": {"n_layer": 8, "n_embd": 768, "n_head": 12, "vocab_size": 8000},
    "Llama": _COMMON_FIELDS | {"intermediate_size": 2048, "num_key_value_heads": 4},
    "GPTNeoX": _COMMON_FIELDS | {"intermediate_size": 3072},
    "OPT": _COMMON_FIELDS | {"ffn_dim": 3072, "word_embed_proj_dim": 768},
    "Mixtral": _COMMON_FIELDS | _MIXTRAL_FIELDS,
}


def save_random_model(name: str, folder: Path) -> Path:
    """Save one of `MODEL_CONFIGS` with seeded random weights, and return its directory."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**MODEL_CONFIGS[name])
    model_class = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    getattr(transformers, model_class)(config).save_pretrained(folder / name)
    return folder / name


def save_small_gpt2(folder: Path) -> Path:
    """Save a model of GPT-2-small's size with seeded random weights, and return the folder."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    return folder


def random_task(model: Backend, n_pairs: int, n_tokens: int, seed: int = 0) -> Task:
    """Draw pairs of random tokens.

    The two sides differ in about half of the tokens from the sixth on, and agree in the last one.
    """
    rng = random.Random(seed)
    pairs = []
    for _ in range(n_pairs):
        clean = [rng.randrange(model.d_vocab) for _ in range(n_tokens)]
        corrupted = list(clean)
        for position in range(FIRST_DIFFERENCE, n_tokens - 1):
            if position == FIRST_DIFFERENCE or rng.random() < 0.5:
                shift = 1 + rng.randrange(model.d_vocab - 2)
                corrupted[position] = (corrupted[position] + shift) % model.d_vocab
        answer, wrong = rng.sample(range(model.d_vocab), 2)
        pairs.append({"clean": clean, "corrupted": corrupted, "answer": answer, "wrong": wrong})
    return load_task(pairs, model)
