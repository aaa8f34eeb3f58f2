"""Everything that is not a model we can load: a cause and a cure, one line each, before anything is measured."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.random_models.tiny_models import (
    VOCAB,
    TinyModels,
    save_hugging_face,
    save_native,
    save_tokenizer,
)
from discovery.backends.hardware.devices import choose_device
from discovery.backends.loading.load import load_model
from discovery.backends.loading.source import fetch_hub_model
from discovery.errors import ModelError


def refuse(name: Any, **options: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_model(name, **{"device": "cpu"} | options)
    fault = caught.value
    for line in (fault.cause, fault.cure):
        assert line.strip()
        assert "\n" not in line
    return fault


@pytest.fixture
def gpt2(tiny_models: TinyModels, folder: Path) -> Path:
    """A sound model, to be spoilt."""
    return Path(shutil.copytree(tiny_models.path("gpt2"), folder))


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_directory_that_does_not_exist(tmp_path):
    assert "does not exist" in refuse(tmp_path / "nowhere").cause
    assert "does not exist" in refuse("./nowhere").cause
    assert "does not exist" in refuse("a/b/c").cause


def test_an_empty_directory(tmp_path):
    fault = refuse(tmp_path)
    assert "without config.json or tl_config.json" in fault.cause
    assert "save_pretrained" in fault.cure


def test_a_file(gpt2):
    assert "is a file" in refuse(gpt2 / "model.safetensors").cause


@pytest.mark.parametrize("text", ["", "{", "\x00\xff", '{"model_type": "gpt2",}'])
def test_a_damaged_configuration(gpt2, text):
    (gpt2 / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json is not JSON" in refuse(gpt2).cause


@pytest.mark.parametrize("text", ["[]", "{}", '"gpt2"', '{"architectures": ["GPT2LMHeadModel"]}'])
def test_a_configuration_of_nothing(gpt2, text):
    (gpt2 / "config.json").write_text(text)
    assert "names no model_type" in refuse(gpt2).cause


@pytest.mark.parametrize("fields", [{"n_head": 3}, {"n_layer": "two"}, {"n_embd": -4}])
def test_a_configuration_that_makes_no_model(gpt2, fields):
    change(gpt2 / "config.json", **fields)
    fault = refuse(gpt2)
    assert "does not take its config.json" in fault.cause
    assert fault.detail
    assert fault.detail not in str(
        fault
    )  # another library's words are for the owner of the machine


def test_a_kind_of_model_that_transformers_lacks(gpt2):
    change(gpt2 / "config.json", model_type="gpt3")
    assert "no causal language model of type 'gpt3'; similar types: " in refuse(gpt2).cause


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_in_a_model_directory_is_never_run(gpt2, name, tmp_path):
    ran = tmp_path / "ran"
    (gpt2 / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    target = gpt2 / name
    if not target.exists():
        target.write_text("{}")
    change(
        target,
        auto_map={
            "AutoModelForCausalLM": "own.Own",
            "AutoConfig": "own.Config",
            "AutoTokenizer": ["own.Tokenizer", None],
        },
    )
    fault = refuse(gpt2)
    assert f"{name} asks to run code" in fault.cause
    assert not ran.exists()


def test_an_encoder_decoder(gpt2):
    change(gpt2 / "config.json", model_type="t5", is_encoder_decoder=True)
    assert "encoder-decoder (t5)" in refuse(gpt2).cause


class Trap:
    """A pickle that says so when it is opened."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (str(self.place), "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickled_weights_are_not_opened_and_the_command_that_converts_them_is_given(
    gpt2, name, tmp_path
):
    (gpt2 / "model.safetensors").unlink()
    (gpt2 / name).write_bytes(pickle.dumps(Trap(tmp_path / "opened")))
    fault = refuse(gpt2)
    assert f"as a pickle ({name})" in fault.cause
    assert "python -c" in fault.cure
    assert "save_pretrained" in fault.cure
    assert str(gpt2) in fault.cure
    assert not (tmp_path / "opened").exists()


def test_the_command_converts(gpt2, tiny_models):
    """What the message says to type works."""
    torch.save(load_file(gpt2 / "model.safetensors"), gpt2 / "pytorch_model.bin")
    (gpt2 / "model.safetensors").unlink()
    command = refuse(gpt2).cure.split('python -c "')[1].rstrip('"')
    exec(compile(command, "cure", "exec"), {})
    assert load_model(gpt2, device="cpu").info.d_vocab == VOCAB


def test_no_weights_at_all(gpt2):
    (gpt2 / "model.safetensors").unlink()
    assert "has no *.safetensors file" in refuse(gpt2).cause


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"nonsense"),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
    ],
)
def test_damaged_weights(gpt2, spoil):
    spoil(gpt2 / "model.safetensors")
    fault = refuse(gpt2)
    assert "weights" in fault.cause
    assert "again" in fault.cure


def rewrite(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_layer_that_the_configuration_leaves_out(gpt2):
    """It would run, as another model, under the fingerprint of the whole one."""
    change_config(gpt2, n_layer=2)
    fault = refuse(gpt2)
    assert "weights of layers that config.json leaves out, first transformer.h.2" in fault.cause


def test_weights_that_the_model_does_not_use_are_let_pass(gpt2):
    rewrite(gpt2, lambda state: state.update({"vision_tower.weight": torch.zeros(2)}))
    assert load_model(gpt2, device="cpu").info.n_layers == 3


def test_a_weight_of_another_shape_is_named(gpt2):
    change_config(gpt2, n_embd=8)
    assert "weights have other shapes than config.json says, first" in refuse(gpt2).cause


def test_weights_that_are_not_numbers(gpt2):
    def edit(state: dict[str, torch.Tensor]) -> None:
        state[next(name for name in state if name.endswith("h.1.mlp.c_fc.weight"))][0, 0] = float(
            "nan"
        )

    rewrite(gpt2, edit)
    assert "own logits are not finite" in refuse(gpt2).cause


def test_a_missing_weight(gpt2):
    def edit(state: dict[str, torch.Tensor]) -> None:
        del state[next(name for name in state if name.endswith("h.1.mlp.c_fc.weight"))]

    rewrite(gpt2, edit)
    fault = refuse(gpt2)
    assert "lacks 1 weights" in fault.cause
    assert "h.1.mlp.c_fc.weight" in fault.cause


def test_a_misshapen_weight(gpt2):
    def edit(state: dict[str, torch.Tensor]) -> None:
        name = next(name for name in state if name.endswith("h.1.mlp.c_fc.weight"))
        state[name] = state[name][:-1].contiguous()

    rewrite(gpt2, edit)
    fault = refuse(gpt2)
    assert "h.1.mlp.c_fc.weight" in fault.cause or "size" in fault.cause or "shape" in fault.cause


def test_a_tokenizer_that_cannot_be_read(gpt2):
    (gpt2 / "tokenizer.json").write_text("{")
    fault = refuse(gpt2)
    assert "tokenizer cannot be read" in fault.cause
    assert "token ids" in fault.cure
    save_tokenizer(gpt2)
    assert load_model(gpt2, device="cpu").tokenizer is not None


def test_a_model_that_looks_back_and_forth(folder):
    import transformers

    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
    )
    transformers.BertLMHeadModel(config).save_pretrained(folder)
    assert "is not causal" in refuse(folder).cause


def test_an_architecture_that_the_engine_does_not_know(folder):
    import transformers

    config = transformers.CTRLConfig(
        vocab_size=VOCAB, n_positions=12, n_embd=16, dff=24, n_layer=1, n_head=2
    )
    transformers.CTRLLMHeadModel(config).save_pretrained(folder)
    assert "TransformerLens cannot wrap CTRLLMHeadModel" in refuse(folder).cause


def test_a_configuration_that_does_not_fit_itself(folder):
    import transformers

    config = transformers.StableLmConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=0,
    )  # its default of 32 key heads is left
    transformers.StableLmForCausalLM(config).save_pretrained(folder)
    assert "does not run" in refuse(folder).cause


@pytest.mark.parametrize("dtype", ["int8", "float", "torch.float32", ""])
def test_an_unknown_dtype(dtype):
    fault = refuse("anything", dtype=dtype)
    assert f"dtype {dtype!r} is not known" in fault.cause
    assert "float32" in fault.cure


def test_an_unknown_backend():
    assert "backend 'jax' is not known" in refuse("anything", backend="jax").cause


@pytest.mark.parametrize(
    "device", ["gpu", "", "cpu:first", "cpu:0", "auto:0", "cuda:", "cuda:x", "mps:0", "CPU"]
)
def test_an_unknown_device(device):
    assert f"device {device!r} is not known" in refuse("anything", device=device).cause


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_a_device_that_is_not_here(device):
    fault = refuse("anything", device=device)
    assert device in fault.cause
    assert "device cpu" in fault.cure


@pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="this machine has more"
)
def test_the_device_that_is_there():
    assert choose_device("auto") == choose_device("cpu") == "cpu"


def test_a_hub_name_without_the_hub(monkeypatch):
    """HF_HUB_OFFLINE=1, as in all tests; and a hub that does not answer."""
    fault = refuse("someone/some-model-that-is-not-cached")
    assert "downloads are switched off" in fault.cause
    assert "HF_HUB_OFFLINE" in fault.cure
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    fault = refuse("someone/some-model-that-is-not-cached")
    assert "the hub could not be reached" in fault.cause
    assert "HF_HUB_OFFLINE" in fault.cure


@pytest.mark.parametrize("name", ["no spaces allowed", "-x", "a..b", "x" * 200])
def test_what_is_no_name_at_all(name):
    assert "neither a directory nor a hub name" in refuse(name).cause


def test_a_cached_hub_model_keeps_its_revision(monkeypatch, tiny_models, tmp_path):
    import huggingface_hub

    commit = tmp_path / "snapshots" / "0123abcd"
    shutil.copytree(tiny_models.path("gpt2"), commit)
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **options: asked.update(options, name=name) or str(commit),
    )
    info = load_model("someone/tiny", device="cpu").info
    assert (info.name, info.source, info.revision) == ("someone/tiny", "someone/tiny", "0123abcd")
    assert asked["name"] == "someone/tiny"
    assert not any(pattern.endswith((".py", ".bin", ".pt")) for pattern in asked["allow_patterns"])


@pytest.mark.parametrize(
    ("error", "cause"),
    [("GatedRepoError", "is gated"), ("RepositoryNotFoundError", "The hub has no model")],
)
def test_what_the_hub_says_no_to(monkeypatch, error, cause):
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    def refused(name: str, **options: Any) -> str:
        response = httpx.Response(403, request=httpx.Request("GET", "https://example.invalid"))
        raise getattr(errors, error)("no", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    with pytest.raises(ModelError, match=cause):
        fetch_hub_model("someone/tiny")


def test_a_hub_model_that_has_only_a_pickle(monkeypatch, tmp_path):
    import huggingface_hub

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: False)
    with pytest.raises(ModelError, match=r"'someone/old' has no \*\.safetensors") as caught:
        fetch_hub_model("someone/old")
    assert "save_pretrained('folder')" in caught.value.cure


def test_what_was_only_described_before_downloads_were_switched_off(monkeypatch, tmp_path):
    """Its configuration is in the cache, and its weights are not."""
    import huggingface_hub

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: True)
    with pytest.raises(
        ModelError, match=r"The cache has no \*\.safetensors file of the hub model 'someone/new'"
    ):
        fetch_hub_model("someone/new")
    assert fetch_hub_model("someone/new", weights=False).directory == tmp_path


# TransformerLens's own format


def test_a_misspelt_field_is_a_warning(folder):
    path = save_native(folder).path / "tl_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_lyers": 3}))
    assert any(
        "n_lyers" in warning for warning in load_model(path.parent, device="cpu").info.warnings
    )


def test_a_native_directory_without_weights(folder):
    (save_native(folder).path / "model.safetensors").unlink()
    assert "has no model.safetensors" in refuse(folder).cause


def test_a_native_pickle(folder):
    made = save_native(folder)
    (made.path / "model.safetensors").unlink()
    torch.save(made.state, folder / "model.pt")
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
    change(folder / "tl_config.json", **fields)
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
    made = save_native(folder)
    made.state[name] = made.state[name][:-1]
    made.save()
    fault = refuse(folder)
    assert f"{name!r} has shape" in fault.cause
    assert "asks for" in fault.cure


@pytest.mark.parametrize(
    "name", ["blocks.2.attn.W_Q", "blocks.0.mlp.W_gate", "blocks.0.attn.W_q", "blocks.0.attn.bias"]
)
def test_a_native_weight_that_nothing_uses(folder, name):
    made = save_native(folder)
    made.state[name] = torch.zeros(3)
    made.save()
    assert f"unknown weight {name!r}" in refuse(folder).cause


def test_weights_for_a_norm_that_is_not_there(folder):
    made = save_native(folder)
    change(folder / "tl_config.json", normalization_type="LNPre")
    assert "unknown weight 'blocks.0.ln1.b'" in refuse(made.path).cause


def test_a_sound_model_is_not_refused(folder, tmp_path):
    assert load_model(save_native(folder).path, device="cpu").info.n_layers == 2
    assert (
        load_model(str(save_hugging_face(tmp_path / "hf", "gpt2")), device="cpu").info.n_layers == 3
    )
