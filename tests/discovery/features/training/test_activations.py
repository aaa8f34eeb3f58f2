"""Batches of activations, and continuing at a position in them."""

from __future__ import annotations

import torch

from discovery.features.training import make_recipe
from discovery.features.training.activations import ActivationBatches, read_activations
from discovery.features.training.text import Cursor, resolve_text
from tests.discovery.features.training.conftest import token_rows


def test_batches_are_what_the_backend_reads_and_a_position_can_be_resumed(tiny_models):
    model = tiny_models.load("gpt2")
    recipe = make_recipe(model, "resid_post.1", tokens=4000, batch=32)
    source = resolve_text(model, token_rows(400))
    rows = source.rows(model, recipe)
    stream = ActivationBatches(model, rows, recipe, 1)
    batches, positions = [], []
    for _ in range(2 * recipe.batches_per_block + 3):
        positions.append(stream.position)
        batches.append(next(stream))
    assert {tuple(batch.shape) for batch in batches} == {(32, 16)}
    for at in (
        0,
        5,
        recipe.batches_per_block,
        recipe.batches_per_block + 1,
        2 * recipe.batches_per_block + 2,
    ):
        assert torch.equal(
            next(ActivationBatches(model, source.rows(model, recipe), recipe, 1, positions[at])),
            batches[at],
        )
    read, _ = rows.take(Cursor(), recipe.batches_per_block * 32, 1)
    direct = torch.cat(
        [
            activation[mask]
            for _, mask, activation in read_activations(model, recipe.parsed_site, read, 1)
        ]
    )
    distances = torch.cdist(batches[0], direct, compute_mode="donot_use_mm_for_euclid_dist")
    assert float(distances.min(dim=1).values.max()) < 1e-4
    assert len(set(distances.argmin(dim=1).tolist())) == 32
