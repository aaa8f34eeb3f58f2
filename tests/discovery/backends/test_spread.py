"""A model larger than the memory it may take: part of it lies on the disk, and nothing that is measured changes."""

from __future__ import annotations

import os

import pytest
import torch

from discovery import ablate_heads, patch_sweep
from discovery.backends.load import load_model
from discovery.backends.opening import opened, opening
from discovery.errors import ModelError
from tests.discovery.tiny import as_task, hugging_face, random_pairs


def limit_of(path, share):
    """Bytes for a share of the weights."""
    return {"cpu": int(share * sum(file.stat().st_size for file in path.glob("*.safetensors")))}


@pytest.fixture(params=["gpt2", "llama"])
def both(request, shelf):
    """A model whole, and the same with half of it on the disk."""
    path = shelf.path(request.param)
    return load_model(path, device="cpu", backend="nnsight"), load_model(path, device_map="auto", max_memory=limit_of(path, 0.6))


@pytest.mark.parametrize("both", ["gpt2"], indirect=True)
def test_it_lies_on_the_disk_and_says_so(both):
    whole, spread = both
    assert any(parameter.is_meta for parameter in spread.module.parameters())
    assert "on disk" in spread.info.warnings[-1]
    assert (spread.info.chosen, spread.info.fingerprint) == ("only it runs a model that is spread over devices", whole.info.fingerprint)
    assert spread.info.n_params == whole.info.n_params
    again = opening(spread)
    assert (again["device"], again["device_map"], again["backend"]) == ("auto", "auto", "nnsight")
    assert "device_map" not in opening(whole)
    assert opened(again).info.device_map == "auto"
    assert spread.abilities == whole.abilities


@pytest.mark.parametrize("site", ["resid_pre", "head_out", "mlp_out", "q", "pattern"])
def test_sweeps_are_the_same(both, site):
    whole, spread = both
    task = as_task(random_pairs((6, 6)))
    assert torch.allclose(patch_sweep(spread, task, site).per_pair, patch_sweep(whole, task, site).per_pair, atol=1e-6, equal_nan=True)


def test_ablations_and_head_weights_are_the_same(both):
    whole, spread = both
    task = as_task(random_pairs((6,) * 10))
    for ablation in ("resample", "mean"):
        ours, theirs = (ablate_heads(model, task, ["a0.h1", "m1"], ablation=ablation).per_pair for model in (spread, whole))
        assert torch.allclose(ours, theirs, atol=1e-6)
    for layer in range(whole.info.n_layers):
        assert torch.equal(spread.head_weights(layer), whole.head_weights(layer))


def test_another_width_is_written_to_the_disk_and_removed_with_the_model(shelf):
    path = shelf.path("llama")
    model = load_model(path, device_map="auto", max_memory=limit_of(path, 0.3), dtype="float64")
    whole = load_model(path, device="cpu", backend="nnsight", dtype="float64")
    task = as_task(random_pairs((5, 5)))
    assert torch.allclose(patch_sweep(model, task).per_pair, patch_sweep(whole, task).per_pair, atol=1e-12)


def test_the_folder_goes_when_the_module_goes(tmp_path, monkeypatch, shelf):
    import gc
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = shelf.path("gpt2")
    model = load_model(path, device_map="auto", max_memory=limit_of(path, 0.6), dtype="float64")
    assert [name for name in os.listdir(tmp_path) if name.startswith("circuit-scout-offload-")]
    del model
    gc.collect()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"device_map": "balanced please"}, "balanced please"),
        ({"max_memory": {"cpu": 10}}, "device_map is not given"),
        ({"device_map": "auto", "max_memory": {}}, "max_memory is empty"),
        ({"device_map": "auto", "max_memory": {"cpu": True}}, "True"),
        ({"device_map": "auto", "max_memory": {"gpu": 10}}, "cannot lie on 'gpu'"),
        ({"device_map": {"": "nowhere"}}, "cannot lie on 'nowhere'"),
        ({"device_map": {}}, "not known"),
        ({"device_map": "auto", "remote": True}, "one of remote and device_map"),
        ({"device_map": "auto", "device": "cpu"}, "one place"),
        ({"device_map": "auto", "max_memory": {"cpu": "much"}}, "'much'"),
        ({"device_map": "auto", "backend": "transformerlens"}, "takes weights apart"),
    ],
)
def test_contradictions_are_refused(shelf, how, words):
    with pytest.raises(ModelError, match=words):
        load_model(shelf.path("gpt2"), **how)


def test_what_lies_in_one_place_is_not_called_spread(shelf):
    model = load_model(shelf.path("gpt2"), device_map="auto")
    assert (model.info.warnings, model.info.device_map) == ((), "auto")


def test_a_native_checkpoint_is_not_spread(shelf):
    with pytest.raises(ModelError, match="own format"):
        load_model(shelf.path("native"), device_map="auto")


def test_an_architecture_that_nnsight_does_not_know(folder):
    with pytest.raises(ModelError, match="Only nnsight"):
        load_model(hugging_face(folder, "codegen"), device_map="auto")
