"""Native directories with damaged, incomplete or unsupported files are refused by name."""

from __future__ import annotations

import pytest
import torch

from benchmarks.random_models.tiny_models import save_native
from discovery.backends.loading.load import load_model
from tests.discovery.backends.loading.refusals import change_json, refuse


def test_a_misspelt_field_is_a_warning(folder):
    path = save_native(folder).path / "tl_config.json"
    change_json(path, n_lyers=3)
    assert any(
        "n_lyers" in warning for warning in load_model(path.parent, device="cpu").info.warnings
    )


def test_a_native_directory_without_weights(folder):
    (save_native(folder).path / "model.safetensors").unlink()
    assert "has no model.safetensors" in refuse(folder).cause


def test_a_native_pickle(folder):
    checkpoint = save_native(folder)
    (checkpoint.path / "model.safetensors").unlink()
    torch.save(checkpoint.state, folder / "model.pt")
    assert "safetensors" in refuse(folder).cure


def test_damaged_native_weights(folder):
    path = save_native(folder).path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    assert "model.safetensors are damaged" in refuse(folder).cause


@pytest.mark.parametrize("text", ["{", "", "\xff"])
def test_a_damaged_native_configuration(folder, text):
    (save_native(folder).path / "tl_config.json").write_bytes(text.encode("latin-1"))
    assert "tl_config.json is not JSON" in refuse(folder).cause


@pytest.mark.parametrize("text", ["[]", "3", "null"])
def test_a_native_configuration_that_is_no_object(folder, text):
    (save_native(folder).path / "tl_config.json").write_text(text)
    assert "not an object" in refuse(folder).cause


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"n_layers": None}, "lacks n_layers"),
        ({"d_vocab": "31"}, "lacks d_vocab"),
        ({"n_heads": True}, "lacks n_heads"),
        ({"n_layers": 0}, "lacks n_layers"),
        ({"attention_dir": "bidirectional"}, "attention_dir = 'bidirectional' is not supported"),
        ({"parallel_attn_mlp": True}, "parallel_attn_mlp = True is not supported"),
        ({"use_local_attn": True}, "use_local_attn"),
        ({"use_qk_norm": True}, "use_qk_norm"),
        ({"num_experts": 4}, "num_experts"),
        ({"clip_qkv": 3.0}, "clip_qkv"),
        ({"rotary_scaling_factor": 2.0}, "rotary_scaling_factor"),
        ({"use_yarn_rope": True}, "use_yarn_rope"),
        (
            {"positional_embedding_type": "alibi"},
            "positional_embedding_type 'alibi' is not supported",
        ),
        ({"act_fn": "solu_ln"}, "solu_ln"),
        ({"n_key_value_heads": 2}, "n_heads (3) must be divisible"),
        ({"positional_embedding_type": "rotary", "rotary_dim": 3}, "rotary_dim"),
        ({"normalization_type": "BatchNorm"}, "normalization_type 'BatchNorm' is not supported"),
    ],
)
def test_a_native_configuration_beyond_what_there_is(folder, fields, cause):
    save_native(folder)
    change_json(folder / "tl_config.json", **fields)
    assert cause in refuse(folder).cause


def test_a_native_weight_that_is_missing(folder):
    save_native(folder, without=("0.attn.W_K",))
    fault = refuse(folder)
    assert "the weight 'blocks.0.attn.W_K' is missing" in fault.cause
    assert "[3, 12, 6]" in fault.cure


@pytest.mark.parametrize(
    "name",
    ["unembed.W_U", "blocks.1.ln2.w", "blocks.0.mlp.b_in", "pos_embed.W_pos", "blocks.1.attn.b_Q"],
)
def test_a_native_weight_that_is_misshapen(folder, name):
    checkpoint = save_native(folder)
    checkpoint.state[name] = checkpoint.state[name][:-1]
    checkpoint.save()
    fault = refuse(folder)
    assert f"{name!r} has shape" in fault.cause
    assert "asks for" in fault.cure


@pytest.mark.parametrize(
    "name", ["blocks.2.attn.W_Q", "blocks.0.mlp.W_gate", "blocks.0.attn.W_q", "blocks.0.attn.bias"]
)
def test_a_native_weight_that_nothing_uses(folder, name):
    checkpoint = save_native(folder)
    checkpoint.state[name] = torch.zeros(3)
    checkpoint.save()
    assert f"unknown weight {name!r}" in refuse(folder).cause


def test_weights_for_a_norm_that_is_not_there(folder):
    checkpoint = save_native(folder)
    change_json(folder / "tl_config.json", normalization_type="LNPre")
    assert "unknown weight 'blocks.0.ln1.b'" in refuse(checkpoint.path).cause
