"""What a configuration says of a model is what the loaded model says of itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict

import pytest
import torch

from benchmarks.random_models.tiny_models import (
    ARCHITECTURES,
    CONTEXT,
    OTHER_ARCHITECTURES,
    save_hugging_face,
    save_native,
    save_tokenizer,
)
from discovery.backends.loading.outline import read_outline
from discovery.errors import ModelError

NATIVE = ("native", "attn_only", "rotary")
QUICK = ("gemma2", "mixtral", "phi")
MORE = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in OTHER_ARCHITECTURES
]
KNOWN_TO_BOTH = ("transformerlens", "nnsight")


@pytest.mark.parametrize("name", [*ARCHITECTURES, *NATIVE, *MORE])
def test_an_outline_is_what_is_then_loaded(tiny_models, name):
    info, found = tiny_models.load(name).info, asdict(read_outline(tiny_models.path(name)))
    for said in ("stacked", "saved", "quantised", "backends", "unknown", "tokenizer"):
        found.pop(said)
    assert found == {field: getattr(info, field) for field in found}
    assert read_outline(tiny_models.path(name)).n_nodes == len(info.nodes())


@pytest.mark.parametrize("gated", [False, True])
def test_biases_that_a_native_checkpoint_adds_are_counted(folder, gated):
    from discovery.backends.loading.load import load_model

    path = save_native(folder, gated_mlp=gated, act_fn="silu" if gated else "gelu_new").path
    assert read_outline(path).n_params == load_model(path, device="cpu").info.n_params


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2), ("float64", 8)])
@pytest.mark.parametrize(("saved", "wide"), [("float32", 4), ("bfloat16", 2)])
def test_loading_takes_the_files_and_what_is_made_of_them(
    folder, tiny_models, dtype, width, saved, wide
):
    """The files are mapped; weights that are saved as they are wanted stay in them."""
    shutil.copytree(tiny_models.path("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": saved}))
    found = read_outline(folder, dtype=dtype)
    assert (found.dtype, found.loading_bytes) == (
        dtype,
        (wide if dtype == saved else width + wide) * found.n_params,
    )


def test_torchs_own_width_stays_as_it_was(folder, monkeypatch):
    """It is the whole process's: what is measured meanwhile would be of another width."""
    path, seen = save_hugging_face(folder, "llama", dtype="bfloat16"), []
    monkeypatch.setattr(torch, "set_default_dtype", seen.append)
    read_outline(path)
    assert set(seen) <= {torch.float32}


def test_no_weights_are_read(folder):
    path = save_tokenizer(save_hugging_face(folder, "llama", num_hidden_layers=80, hidden_size=32))
    whole = read_outline(path)
    (path / "model.safetensors").unlink()
    assert read_outline(path) == whole
    assert (whole.n_layers, whole.n_heads, whole.n_kv_heads, whole.tokenizer) == (80, 4, 2, True)


def test_a_model_that_no_machine_here_could_load(folder):
    """405 billion parameters, as its configuration has them."""
    sizes = {
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
    }
    folder.mkdir()
    kind = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
    }
    (folder / "config.json").write_text(json.dumps({**kind, **sizes, "num_key_value_heads": 8}))
    found = read_outline(folder, dtype="bfloat16")
    assert found.n_params == pytest.approx(405.9e9, rel=1e-3)
    assert found.loading_bytes == (2 + 4) * found.n_params
    assert (found.n_kv_heads, found.d_head, found.n_ctx, found.backends) == (
        8,
        128,
        131072,
        KNOWN_TO_BOTH,
    )


def test_of_a_hub_model_all_but_the_weights_is_fetched(monkeypatch, tiny_models, tmp_path):
    import huggingface_hub

    commit = tmp_path / "snapshots" / "0123abcd"
    shutil.copytree(
        tiny_models.path("gpt2"), commit, ignore=shutil.ignore_patterns("*.safetensors")
    )
    asked = {}
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **options: asked.update(options) or str(commit),
    )
    found = read_outline("someone/tiny")
    assert (found.name, found.source, found.revision) == (
        "someone/tiny",
        "someone/tiny",
        "0123abcd",
    )
    assert "*.json" in asked["allow_patterns"]
    assert "*.safetensors" not in asked["allow_patterns"]


def test_what_sees_too_is_described_by_the_half_that_speaks(folder):
    from transformers import Gemma3Config

    text = {
        "vocab_size": 31,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 6,
    }
    seen = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    folder.mkdir()
    (folder / "config.json").write_text(
        Gemma3Config(
            text_config={**text, "num_key_value_heads": 1}, vision_config=seen
        ).to_json_string()
    )
    found = read_outline(folder)
    assert (found.n_layers, found.n_heads, found.n_kv_heads, found.d_head, found.d_vocab) == (
        2,
        2,
        1,
        6,
        31,
    )
    assert found.n_ctx == 131072  # as Gemma3TextConfig has it: config.json leaves it out


def test_the_larger_falcons_share_keys_and_values_though_they_say_multi_query(folder):
    path = save_hugging_face(
        folder, "falcon", new_decoder_architecture=True, num_kv_heads=2, num_attention_heads=4
    )
    assert read_outline(path).n_kv_heads == 2


def test_the_context_is_bounded_whatever_it_is_called(tiny_models):
    """MPT's biases by distance are made for so many positions."""
    assert read_outline(tiny_models.path("mpt")).n_ctx == CONTEXT


def test_which_backends_know_an_architecture(folder, tiny_models):
    assert read_outline(tiny_models.path("native")).backends == KNOWN_TO_BOTH
    assert read_outline(save_hugging_face(folder / "codegen", "codegen")).backends == (
        "transformerlens",
    )
    assert read_outline(
        save_hugging_face(folder / "opt", "opt", do_layer_norm_before=False)
    ).backends == ("transformerlens",)


@pytest.mark.parametrize("change", [{"num_attention_heads": "many"}, {"model_type": "no_such"}])
def test_a_configuration_that_is_damaged_is_refused(folder, tiny_models, change):
    shutil.copytree(tiny_models.path("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=r"config\.json"):
        read_outline(folder)


def test_an_unknown_dtype(tiny_models):
    with pytest.raises(ModelError, match="int8"):
        read_outline(tiny_models.path("gpt2"), dtype="int8")
