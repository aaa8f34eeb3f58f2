"""A model without attention or MLPs in which two binary features of a token are planted.

One of them, `used`, is what the unembedding reads: it decides between the two answers. The other,
`unused`, is as easy to read from the stream, and nothing reads it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from discovery import load_model
from discovery.backends.base import Backend
from discovery.tasks.task import EncodedPair, SplitName, Task

D_MODEL = 24
N_TOKENS = 96  # of the vocabulary, each in one prompt
N_TEMPLATES = 6
ANSWERS = (N_TOKENS + 1, N_TOKENS + 2)
D_VOCAB = N_TOKENS + 3
GAP = 2.5  # how far each feature moves the stream
LOUD = 8  # dimensions of large variance that mean nothing


@dataclass(frozen=True)
class Planted:
    """The model, its task, and the direction that the answers rest on.

    The labels A and B of a pair say its `unused` feature: A comes first if it is set. The labels C
    and D say nothing: they are drawn at random.
    """

    model: Backend
    task: Task
    used: np.ndarray


def plant_features(folder: Path, seed: int = 0) -> Planted:
    """Write the model, load it, and return it with its task."""
    rng = np.random.default_rng(seed)
    turned, _ = np.linalg.qr(rng.standard_normal((D_MODEL, D_MODEL)))
    used, unused = turned[0], turned[1]
    spread = np.ones(D_MODEL)
    spread[2 : 2 + LOUD] = 3.0
    embedding = (rng.standard_normal((D_VOCAB, D_MODEL)) * spread) @ turned
    per_template = N_TOKENS // N_TEMPLATES
    patterns = np.tile([[1, 1], [1, -1], [-1, 1], [-1, -1]], (per_template // 4, 1))
    features = np.vstack([rng.permutation(patterns) for _ in range(N_TEMPLATES)])
    embedding[:N_TOKENS] += GAP * (features[:, :1] * used + features[:, 1:] * unused)
    unembedding = np.zeros((D_MODEL, D_VOCAB))
    unembedding[:, ANSWERS[0]], unembedding[:, ANSWERS[1]] = used, -used
    model = load_model(_save(folder, embedding, unembedding), device="cpu")
    pairs = [_make_pair(number, features, per_template, rng) for number in range(N_TOKENS)]
    splits: list[SplitName] = [
        "discovery" if number // per_template % 2 else "heldout" for number in range(N_TOKENS)
    ]
    task = Task(
        name="planted", pairs=tuple(pairs), splits=tuple(splits), split_method="by whole templates"
    )
    return Planted(model, task, used)


def _make_pair(
    number: int, features: np.ndarray, per_template: int, rng: np.random.Generator
) -> EncodedPair:
    template = number // per_template
    members = range(template * per_template, (template + 1) * per_template)
    others = [other for other in members if features[other, 0] != features[number, 0]]
    is_set = features[number, 0] > 0
    return EncodedPair(
        clean=(N_TOKENS, number),
        corrupted=(N_TOKENS, int(rng.choice(others))),
        answer=(ANSWERS[0] if is_set else ANSWERS[1],),
        wrong=(ANSWERS[1] if is_set else ANSWERS[0],),
        template=f"t{template}",
        labels=_order("A", "B", bool(features[number, 1] > 0))
        | _order("C", "D", rng.random() < 0.5),
    )


def _order(first: str, second: str, is_first: bool) -> dict[str, int]:
    return {first: 0, second: 1} if is_first else {first: 1, second: 0}


def _save(folder: Path, embedding: np.ndarray, unembedding: np.ndarray) -> Path:
    folder.mkdir()
    config = {
        "n_layers": 2,
        "d_model": D_MODEL,
        "n_heads": 1,
        "d_head": 4,
        "n_ctx": 4,
        "d_vocab": D_VOCAB,
        "attn_only": True,
        "normalization_type": None,
        "positional_embedding_type": "standard",
        "act_fn": None,
        "d_mlp": None,
        "eps": 1e-5,
    }
    state = {"embed.W_E": embedding, "pos_embed.W_pos": np.zeros((4, D_MODEL))}
    state |= {"unembed.W_U": unembedding, "unembed.b_U": np.zeros(D_VOCAB)}
    for layer in range(2):
        for name in "QKV":
            state[f"blocks.{layer}.attn.W_{name}"] = np.zeros((1, D_MODEL, 4))
        state[f"blocks.{layer}.attn.W_O"] = np.zeros((1, 4, D_MODEL))
    (folder / "tl_config.json").write_text(json.dumps(config))
    tensors = {name: torch.tensor(value, dtype=torch.float32) for name, value in state.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder
