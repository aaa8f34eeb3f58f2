"""A trained SAE finds the directions of which a model's residual stream is a sparse sum."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from discovery import load_model, train_sae

VOCABULARY = 1000
WIDTH = 24
DIRECTIONS = 36
ACTIVE_DIRECTIONS = 3  # of each token's embedding
CONTEXT = 8


def planted_model(folder: Path, seed: int = 0) -> Tensor:
    """Save an attention-only model whose embeddings are sparse sums of directions.

    Returns:
        The directions [feature d_model], of length 1.
    """
    rng = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(
        torch.randn(DIRECTIONS, WIDTH, generator=rng), dim=-1
    )
    active = torch.stack(
        [torch.randperm(DIRECTIONS, generator=rng)[:ACTIVE_DIRECTIONS] for _ in range(VOCABULARY)]
    )
    amounts = torch.zeros(VOCABULARY, DIRECTIONS).scatter(
        1, active, 0.5 + torch.rand(VOCABULARY, ACTIVE_DIRECTIONS, generator=rng)
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
        "n_layers": 1,
        "d_model": WIDTH,
        "n_heads": 2,
        "d_head": 4,
        "n_ctx": CONTEXT,
        "d_vocab": VOCABULARY,
        "act_fn": None,
        "attn_only": True,
        "normalization_type": None,
        "positional_embedding_type": "standard",
    }
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


@pytest.mark.parametrize(
    "options",
    [{"k": 3}, pytest.param({"architecture": "standard", "l1": 2.0}, marks=pytest.mark.slow)],
    ids=["topk", "standard"],
)
def test_nine_tenths_of_the_planted_directions_are_found(tmp_path, options):
    directions = planted_model(tmp_path / "model")
    model = load_model(tmp_path / "model", device="cpu")
    trained = train_sae(
        model,
        planted_rows(3000),
        "resid_pre.0",
        runs_dir=tmp_path,
        d_sae=72,
        tokens=80_000,
        batch=128,
        **options,
    )
    learnt = torch.nn.functional.normalize(trained.sae.directions(), dim=-1)
    nearest = (directions @ learnt.T).max(dim=1).values
    assert float((nearest >= 0.9).float().mean()) >= 0.9
    untrained = torch.nn.functional.normalize(
        torch.randn(72, directions.shape[1], generator=torch.Generator().manual_seed(5)), dim=-1
    )
    assert float(((directions @ untrained.T).max(dim=1).values >= 0.9).float().mean()) < 0.1
