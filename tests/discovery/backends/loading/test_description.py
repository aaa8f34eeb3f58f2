"""Sizes that a configuration gives: the length of the longest prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.random_models.tiny_models import save_hugging_face
from discovery.backends.loading.description import read_context_length
from discovery.backends.loading.load import load_model
from discovery.sites import BackendName


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({"max_position_embeddings": 128}, 128),
        (
            {
                "max_position_embeddings": 128,
                "rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 32},
            },
            128,
        ),
        (
            {
                "max_position_embeddings": 128,
                "rope_scaling": {"type": "longrope"},
                "original_max_position_embeddings": 32,
            },
            32,
        ),
        (
            {
                "max_position_embeddings": 128,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "original_max_position_embeddings": 16,
                },
            },
            16,
        ),
        (
            {
                "max_position_embeddings": 64,
                "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
            },
            64,
        ),
        ({}, 2048),
    ],
)
def test_a_rotation_that_depends_on_the_batch_bounds_the_prompt(
    config: dict[str, Any], longest: int
) -> None:
    assert read_context_length(config) == longest


def test_a_rotation_that_depends_on_the_batch_bounds_the_model(
    backend: BackendName, tmp_path: Path
) -> None:
    rotation = {
        "rope_type": "dynamic",
        "factor": 2.0,
        "original_max_position_embeddings": 6,
        "rope_theta": 1e4,
    }
    path = save_hugging_face(tmp_path / "model", "llama", rope_parameters=rotation)
    assert load_model(path, backend=backend, device="cpu").info.n_ctx == 6
