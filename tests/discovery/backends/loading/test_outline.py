"""What an outline says about a model is what the loaded model says."""

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
    info = tiny_models.load(name).info
    outline = asdict(read_outline(tiny_models.path(name)))
    for field in ("stacked", "saved", "quantised", "backends", "unknown", "tokenizer"):
        outline.pop(field)
    assert outline == {field: getattr(info, field) for field in outline}
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
    """The files are mapped, and weights that are saved in the wanted dtype stay in them."""
    shutil.copytree(tiny_models.path("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": saved}))
    outline = read_outline(folder, dtype=dtype)
    assert (outline.dtype, outline.loading_bytes) == (
        dtype,
        (wide if dtype == saved else width + wide) * outline.n_params,
    )


def test_the_default_dtype_of_torch_stays_float32(folder, monkeypatch):
    """It belongs to the whole process, so another thread would measure in another dtype."""
    path = save_hugging_face(folder, "llama", dtype="bfloat16")
    dtypes = []
    monkeypatch.setattr(torch, "set_default_dtype", dtypes.append)
    read_outline(path)
    assert set(dtypes) <= {torch.float32}


def test_no_weights_are_read(folder):
    path = save_tokenizer(save_hugging_face(folder, "llama", num_hidden_layers=80, hidden_size=32))
    whole = read_outline(path)
    (path / "model.safetensors").unlink()
    assert read_outline(path) == whole
    assert (whole.n_layers, whole.n_heads, whole.n_kv_heads, whole.tokenizer) == (80, 4, 2, True)


def test_a_model_that_no_machine_here_could_load(folder):
    """The configuration describes 405 billion parameters."""
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
    outline = read_outline(folder, dtype="bfloat16")
    assert outline.n_params == pytest.approx(405.9e9, rel=1e-3)
    assert outline.loading_bytes == (2 + 4) * outline.n_params
    assert (outline.n_kv_heads, outline.d_head, outline.n_ctx, outline.backends) == (
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
    options = {}
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **arguments: options.update(arguments) or str(commit),
    )
    outline = read_outline("someone/tiny")
    assert (outline.name, outline.source, outline.revision) == (
        "someone/tiny",
        "someone/tiny",
        "0123abcd",
    )
    assert "*.json" in options["allow_patterns"]
    assert "*.safetensors" not in options["allow_patterns"]


def test_a_model_that_also_sees_is_described_by_its_language_model(folder):
    from transformers import Gemma3Config

    text = {
        "vocab_size": 31,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 6,
    }
    vision = {
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
            text_config={**text, "num_key_value_heads": 1}, vision_config=vision
        ).to_json_string()
    )
    outline = read_outline(folder)
    assert (
        outline.n_layers,
        outline.n_heads,
        outline.n_kv_heads,
        outline.d_head,
        outline.d_vocab,
    ) == (
        2,
        2,
        1,
        6,
        31,
    )
    assert outline.n_ctx == 131072  # as Gemma3TextConfig has it: config.json leaves it out


def test_the_larger_falcons_share_keys_and_values_though_they_say_multi_query(folder):
    path = save_hugging_face(
        folder, "falcon", new_decoder_architecture=True, num_kv_heads=2, num_attention_heads=4
    )
    assert read_outline(path).n_kv_heads == 2


def test_the_context_is_bounded_whatever_it_is_called(tiny_models):
    """MPT's position biases are made for a fixed number of positions."""
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
