"""Directories and hub names without a model that can be loaded are refused before loading."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.random_models.tiny_models import VOCAB
from discovery.backends.loading.load import load_model
from discovery.backends.loading.source import fetch_hub_model
from discovery.errors import ModelError
from tests.discovery.backends.loading.refusals import change_json, refuse


def test_a_directory_that_does_not_exist(tmp_path):
    assert "does not exist" in refuse(tmp_path / "nowhere").cause
    assert "does not exist" in refuse("./nowhere").cause
    assert "does not exist" in refuse("a/b/c").cause


def test_an_empty_directory(tmp_path):
    fault = refuse(tmp_path)
    assert "without config.json, tl_config.json or a .gguf file" in fault.cause
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


def test_a_kind_of_model_that_transformers_lacks(gpt2):
    change_json(gpt2 / "config.json", model_type="gpt3")
    assert "no causal language model of type 'gpt3'; similar types: " in refuse(gpt2).cause


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_in_a_model_directory_is_never_run(gpt2, name, tmp_path):
    ran = tmp_path / "ran"
    (gpt2 / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    target = gpt2 / name
    if not target.exists():
        target.write_text("{}")
    change_json(
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
    change_json(gpt2 / "config.json", model_type="t5", is_encoder_decoder=True)
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
    call: dict[str, Any] = {}
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **options: call.update(options, name=name) or str(commit),
    )
    info = load_model("someone/tiny", device="cpu").info
    assert (info.name, info.source, info.revision) == ("someone/tiny", "someone/tiny", "0123abcd")
    assert call["name"] == "someone/tiny"
    assert not any(pattern.endswith((".py", ".bin", ".pt")) for pattern in call["allow_patterns"])


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
