"""A model whose circuit is known, with SAEs whose features are known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks.known_circuits.hand_built import build_known_circuit
from discovery import load_model, load_task
from discovery.features import load_sae
from tests.tiny_saes import directions_module, save, signed_basis

PLANTED_PAIRS = 12


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """The induction model, its task, and SAEs of the stream's own directions, shuffled."""
    folder = tmp_path_factory.mktemp("induction")
    case = build_known_circuit("induction")
    case.save(folder / "model")
    model = load_model(folder / "model", device="cpu")
    task = load_task(folder / "model" / "task.jsonl", model, pairs=PLANTED_PAIRS)
    d_model = case.layout.d_model
    order = torch.randperm(2 * d_model, generator=torch.Generator().manual_seed(3))
    directions = signed_basis(d_model)[order]
    # The feature that reads each dimension of the stream.
    number = {dim: feature for feature, dim in enumerate(order.tolist()) if dim < d_model}
    after = load_sae(
        save(
            directions_module(directions, "blocks.1.hook_resid_post", neuronpedia_id="toy/1"),
            folder / "after",
        ),
        model,
    )
    between = load_sae(
        save(directions_module(directions, "blocks.1.hook_resid_pre"), folder / "between"), model
    )
    return SimpleNamespace(
        model=model,
        task=task,
        layout=case.layout,
        after=after,
        between=between,
        number=number,
        directions=directions,
        folder=folder,
    )
