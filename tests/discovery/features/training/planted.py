"""A model whose residual stream is a sparse sum of directions that are known: what its tokens' embeddings are made of."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

VOCABULARY, WIDTH, DIRECTIONS, ACTIVE_DIRECTIONS = 1000, 24, 36, 3
CONTEXT = 8


def planted_model(folder: Path, seed: int = 0) -> Tensor:
    """Save an attention-only model that reads each token's embedding; give the directions [feature d_model], of length 1."""
    rng = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(
        torch.randn(DIRECTIONS, WIDTH, generator=rng), dim=-1
    )
    chosen = torch.stack(
        [torch.randperm(DIRECTIONS, generator=rng)[:ACTIVE_DIRECTIONS] for _ in range(VOCABULARY)]
    )
    amounts = torch.zeros(VOCABULARY, DIRECTIONS).scatter(
        1, chosen, 0.5 + torch.rand(VOCABULARY, ACTIVE_DIRECTIONS, generator=rng)
    )
    weights = {
        "embed.W_E": amounts @ directions,
        "pos_embed.W_pos": torch.zeros(CONTEXT, WIDTH),
        "blocks.0.attn.W_Q": torch.zeros(2, WIDTH, 4),
        "blocks.0.attn.W_K": torch.zeros(2, WIDTH, 4),
        "blocks.0.attn.W_V": torch.randn(2, WIDTH, 4, generator=rng),
        "blocks.0.attn.W_O": torch.randn(2, 4, WIDTH, generator=rng),
        "unembed.W_U": torch.randn(WIDTH, VOCABULARY, generator=rng),
    }
    config = {
        "n_layers": 1, "d_model": WIDTH, "n_heads": 2, "d_head": 4, "n_ctx": CONTEXT, "d_vocab": VOCABULARY, "act_fn": None,
        "attn_only": True, "normalization_type": None, "positional_embedding_type": "standard",
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tl_config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return directions


def planted_rows(count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Rows of random tokens."""
    rng = torch.Generator().manual_seed(seed + 1)
    return [
        tuple(row) for row in torch.randint(VOCABULARY, (count, CONTEXT), generator=rng).tolist()
    ]
