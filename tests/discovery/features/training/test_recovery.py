"""What is planted is found: a dictionary trained through the same door as any other."""

from __future__ import annotations

import pytest
import torch

from discovery import load_model, train_sae
from tests.discovery.features.training.planted import planted_model, planted_rows


@pytest.mark.parametrize(
    "asked",
    [{"k": 3}, pytest.param({"architecture": "standard", "l1": 2.0}, marks=pytest.mark.slow)],
    ids=["topk", "standard"],
)
def test_nine_tenths_of_the_planted_directions_are_found(tmp_path, asked):
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
        **asked,
    )
    learnt = torch.nn.functional.normalize(trained.sae.directions(), dim=-1)
    nearest = (directions @ learnt.T).max(dim=1).values
    assert float((nearest >= 0.9).float().mean()) >= 0.9
    untrained = torch.nn.functional.normalize(
        torch.randn(72, directions.shape[1], generator=torch.Generator().manual_seed(5)), dim=-1
    )
    assert float(((directions @ untrained.T).max(dim=1).values >= 0.9).float().mean()) < 0.1
