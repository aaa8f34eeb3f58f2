"""A backend that differs from the plain module, or a model that is not causal, is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from discovery import load_task, patch_sweep
from discovery.backends.loading.checks import (
    LOGITS_TOLERANCE,
    make_probe_tokens,
    require_causal,
    require_same_logits,
)
from discovery.backends.loading.load import load_model
from discovery.errors import BackendMismatchError, ModelError
from discovery.sites import BackendName
from tests.discovery.backends.loading.faulty_backend import FaultyBackend, shift_logits


def test_a_sound_backend_passes(tiny_models, expected):
    require_same_logits(tiny_models.load("gpt2"), expected)
    require_causal(tiny_models.load("gpt2"), expected)


@pytest.mark.parametrize("position", [0, 4, 8])
def test_one_position_that_differs_is_enough_to_be_refused(tiny_models, expected, position):
    expected.logits[0, position, 3] += 2e-4 * float(expected.logits.abs().max())
    with pytest.raises(BackendMismatchError, match="computes other logits than Hugging Face"):
        require_same_logits(tiny_models.load("gpt2"), expected)


def test_not_a_number_is_refused(tiny_models, expected):
    expected.logits[0, 0, 0] = float("nan")
    with pytest.raises(BackendMismatchError):
        require_same_logits(tiny_models.load("gpt2"), expected)


def test_a_model_that_sees_what_comes_later_is_refused(tiny_models, expected):
    faulty = FaultyBackend(
        tiny_models.load("gpt2"),
        lambda batch, edits, out: (
            shift_logits(out) if not torch.equal(batch.tokens[0], expected.tokens[0]) else out
        ),
    )
    with pytest.raises(ModelError, match="not causal"):
        require_causal(faulty, expected)


@pytest.mark.parametrize("n_ctx", [1, 2, 100])
def test_the_probe_fits_the_model(n_ctx):
    tokens = make_probe_tokens(7, n_ctx, "cpu")
    assert tokens.shape == (1, min(9, n_ctx))
    assert int(tokens.max()) < 7


def test_every_dtype_has_a_tolerance():
    assert set(LOGITS_TOLERANCE) == {"float64", "float32", "float16", "bfloat16"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("cap", "columns"), [(30.0, False), (3.0, False), (None, True)])
def test_a_soft_cap_is_seen_however_small_the_logits_are(
    backend: BackendName, cap: float | None, columns: bool, dtype: str, tmp_path: Path
) -> None:
    """A cap hardly changes small logits, as on the probe prompt; single columns would skip it."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = Gemma2Config(
        vocab_size=97, head_dim=6, max_position_embeddings=32, final_logit_softcapping=cap, **sizes
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    model = load_model(tmp_path, backend=backend, device="cpu", dtype=dtype)
    assert model.abilities.columns is columns
    task = load_task(
        [{"clean": [5, 9, 13, 40], "corrupted": [5, 9, 13, 41], "answer": 7, "wrong": 80}], model
    )
    last = patch_sweep(model, task, "resid_post").values[-1, -1]
    assert float(last) == pytest.approx(1.0, abs=1e-5 if dtype == "float32" else 1e-2)
