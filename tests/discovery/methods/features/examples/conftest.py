"""A model of token ids, an SAE whose directions are known, and a text of ids."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import pytest

from benchmarks.known_circuits.hand_built import build_known_circuit
from discovery import load_model
from discovery.features import load_sae
from tests.tiny_saes import directions_module, save, signed_basis


@pytest.fixture(scope="session")
def case(tmp_path_factory):
    """The induction model, an SAE of random directions between its layers, and a text of ids."""
    folder = tmp_path_factory.mktemp("examples")
    known = build_known_circuit("induction")
    model = load_model(known.save(folder / "model"), device="cpu")
    directions = signed_basis(known.layout.d_model, seed=5)
    sae = load_sae(
        save(
            directions_module(directions, "blocks.1.hook_resid_pre", neuronpedia_id="toy/1"),
            folder / "sae",
        ),
        model,
    )
    rng = random.Random(0)
    rows = [[rng.randrange(25) for _ in range(rng.randint(1, 20))] for _ in range(60)]
    rows += [rows[3], rows[3], rows[7]]  # said again: no new context
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"tokens": row}) + "\n" for row in rows))
    return SimpleNamespace(
        model=model, sae=sae, rows=rows, text=text, directions=directions, folder=folder
    )
