"""A model larger than the memory it may take: part of it is on the disk, and no number changes."""

from __future__ import annotations

import gc
import tempfile
from types import SimpleNamespace

import pytest
import torch

from benchmarks.random_models.tiny_models import as_task, random_pairs, save_hugging_face
from discovery import ablate_heads, load_task, patch_sweep, sae_top_features
from discovery.backends.base import Batch
from discovery.backends.hardware import placement
from discovery.backends.loading import huggingface
from discovery.backends.loading.load import load_model
from discovery.backends.loading.load_arguments import load_arguments, reload
from discovery.errors import MeasurementError, ModelError


def limit_of(path, share):
    """Limit the memory to a share of the bytes of the weights."""
    return {"cpu": int(share * sum(file.stat().st_size for file in path.glob("*.safetensors")))}


@pytest.fixture(params=["gpt2", "llama"])
def whole_and_spread(request, tiny_models):
    """A model in memory, and the same model with almost half of it on the disk."""
    path = tiny_models.path(request.param)
    whole = load_model(path, device="cpu", backend="nnsight")
    spread = load_model(path, device_map="auto", max_memory=limit_of(path, 0.6))
    return whole, spread


def test_a_mapping_says_where_each_part_lies(tiny_models):
    path = tiny_models.path("llama")
    task = as_task(random_pairs((5, 5)))
    device_map = {
        "model.embed_tokens": "cpu",
        "model.layers": "disk",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "disk",
    }
    model = load_model(path, device_map=device_map)
    whole = load_model(path, device="cpu", backend="nnsight")
    assert {name for name, weight in model.module.named_parameters() if weight.is_meta} == {
        name
        for name, _ in whole.module.named_parameters()
        if name.startswith(("model.layers", "lm_head"))
    }
    assert torch.allclose(
        patch_sweep(model, task).per_pair, patch_sweep(whole, task).per_pair, atol=1e-6
    )


@pytest.mark.parametrize("whole_and_spread", ["gpt2"], indirect=True)
def test_it_lies_on_the_disk_and_says_so(whole_and_spread):
    whole, spread = whole_and_spread
    assert any(parameter.is_meta for parameter in spread.module.parameters())
    assert "on disk" in spread.info.warnings[-1]
    assert (spread.info.backend_reason, spread.info.fingerprint) == (
        "only nnsight runs a model that is spread over devices",
        whole.info.fingerprint,
    )
    assert spread.info.n_params == whole.info.n_params
    assert whole.resident_weight_bytes == 4 * whole.info.n_params
    assert (
        0
        < spread.resident_weight_bytes
        == sum(weight.nbytes for weight in spread.module.parameters() if not weight.is_meta)
        < whole.resident_weight_bytes
    )
    again = load_arguments(spread)
    assert (again.device, again.device_map, again.backend) == ("auto", "auto", "nnsight")
    assert load_arguments(whole).device_map is None
    assert reload(again).info.device_map == "auto"
    assert spread.abilities == whole.abilities


@pytest.mark.parametrize("site", ["resid_pre", "head_out", "mlp_out", "q", "pattern"])
def test_sweeps_are_the_same(whole_and_spread, site):
    whole, spread = whole_and_spread
    task = as_task(random_pairs((6, 6)))
    assert torch.allclose(
        patch_sweep(spread, task, site).per_pair,
        patch_sweep(whole, task, site).per_pair,
        atol=1e-6,
        equal_nan=True,
    )


def test_ablations_and_head_weights_are_the_same(whole_and_spread):
    whole, spread = whole_and_spread
    task = as_task(random_pairs((6,) * 10))
    for ablation in ("resample", "mean"):
        ours, theirs = (
            ablate_heads(model, task, ["a0.h1", "m1"], ablation=ablation).per_pair
            for model in (spread, whole)
        )
        assert torch.allclose(ours, theirs, atol=1e-6)
    for layer in range(whole.info.n_layers):
        assert torch.equal(spread.head_weights(layer), whole.head_weights(layer))


def test_another_dtype_is_the_same(tiny_models):
    path = tiny_models.path("llama")
    model = load_model(path, device_map="auto", max_memory=limit_of(path, 0.3), dtype="float64")
    whole = load_model(path, device="cpu", backend="nnsight", dtype="float64")
    task = as_task(random_pairs((5, 5)))
    assert torch.allclose(
        patch_sweep(model, task).per_pair, patch_sweep(whole, task).per_pair, atol=1e-12
    )


def test_gradients_are_the_same_if_they_hold_no_more_than_the_files():
    """Weights in the files' dtype are mapped, so a gradient that went through them is possible.

    Weights in another dtype would all be held in memory.
    """
    whole = load_model("bundled", device="cpu", backend="nnsight")
    limit = {"cpu": 1_500_000}
    half = load_model("bundled", device_map="auto", max_memory=limit)
    task = load_task("ioi", whole, pairs=4)
    assert "on disk" in half.info.warnings[-1]
    theirs, ours = (
        patch_sweep(model, task, "head_out_by_position", screen=True) for model in (whole, half)
    )
    assert torch.allclose(ours.values, theirs.values, atol=1e-6, equal_nan=True)
    theirs, ours = (
        sae_top_features(model, task=task, positions=["end"], k=2).features
        for model in (whole, half)
    )
    assert [(feature.index, feature.ablation.mean) for feature in ours] == [
        (feature.index, pytest.approx(feature.ablation.mean, abs=1e-5)) for feature in theirs
    ]
    other = load_model("bundled", device_map="auto", max_memory=limit, dtype="bfloat16")
    assert other.abilities.gradients is False
    for measure in (
        lambda: patch_sweep(other, task, "head_out_by_position", screen=True),
        lambda: sae_top_features(other, task=task, positions=["end"], k=2),
        lambda: other.run(Batch(torch.tensor([[1, 2]]), torch.tensor([1])), grad=True),
    ):
        with pytest.raises(MeasurementError, match="would hold all weights"):
            measure()
    assert load_model(
        "bundled", device_map="auto", dtype="bfloat16"
    ).abilities.gradients  # all of it is in memory


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_is_made_for_the_disk_goes_when_the_module_goes(temporary, tiny_models):
    """Experts are stacked from several weights, so they are written anew."""
    path = tiny_models.path("mixtral")
    model = load_model(path, device_map="auto", max_memory=limit_of(path, 0.1))
    [folder] = temporary.iterdir()
    assert folder.name.startswith("circuit-scout-offload-")
    assert len(list(folder.iterdir())) == 2 * model.info.n_layers
    whole = load_model(path, device="cpu", backend="nnsight")
    task = as_task(random_pairs((5, 5)))
    assert torch.allclose(
        patch_sweep(model, task).per_pair, patch_sweep(whole, task).per_pair, atol=1e-6
    )
    del model
    gc.collect()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), RuntimeError("unusable")])
def test_what_is_made_for_the_disk_goes_if_loading_ends(temporary, tiny_models, monkeypatch, fault):
    def fail(*_):
        assert len(list(temporary.glob("*/*"))) > 0
        raise fault

    monkeypatch.setattr(huggingface, "_fuse_activations", fail)
    path = tiny_models.path("mixtral")
    with pytest.raises(type(fault)):
        load_model(path, device_map="auto", max_memory=limit_of(path, 0.1))
    assert list(temporary.iterdir()) == []


def test_what_does_not_fit_on_the_disk_is_refused_before(tiny_models, monkeypatch):
    monkeypatch.setattr(huggingface, "_load_pretrained", lambda *_: pytest.fail("it was opened"))
    monkeypatch.setattr(placement.shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    path = tiny_models.path("mixtral")
    with pytest.raises(ModelError, match=r"0\.0 GB of them would be written") as caught:
        load_model(path, device_map="auto", max_memory={"cpu": 1})
    assert "TMPDIR" in caught.value.cure


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"device_map": "balanced please"}, "balanced please"),
        ({"max_memory": {"cpu": 10}}, "device_map is not given"),
        ({"device_map": "auto", "max_memory": {}}, "max_memory is {}"),
        ({"device_map": "auto", "max_memory": 10**9}, "max_memory is 1000000000"),
        (
            {"device_map": {"": "cpu"}, "max_memory": {"cpu": 10}},
            "a device_map that places every part",
        ),
        ({"device_map": {"": ["cpu"]}}, "cannot be on"),
        (
            {"device_map": {"transformer.g": "cpu", "": "disk"}},
            "'transformer.g', which is not a part of a GPT2LMHeadModel",
        ),
        ({"device_map": {0: "cpu"}}, "names 0, which is not a part"),
        (
            {"device_map": {"transformer.h": "cpu", "": "disk"}},
            "'transformer.h' and '', which contains it",
        ),
        (
            {"device_map": {"transformer.h.1": "cpu"}},
            "does not say where 'transformer.wte.weight' goes",
        ),
        (
            {"device_map": {"transformer": "disk", "lm_head": "cpu"}},
            "or not this device_map",
        ),  # one weight in two places
        ({"device_map": "auto", "max_memory": {"cpu": True}}, "True"),
        ({"device_map": "auto", "max_memory": {"gpu": 10}}, "cannot be on 'gpu'"),
        ({"device_map": {"": "nowhere"}}, "cannot be on 'nowhere'"),
        ({"device_map": {}}, "not known"),
        ({"device_map": "auto", "remote": True}, "one of remote and device_map"),
        ({"device_map": "auto", "device": "cpu"}, "one device"),
        ({"device_map": "auto", "max_memory": {"cpu": "much"}}, "'much'"),
        ({"device_map": "auto", "backend": "transformerlens"}, "takes weights apart"),
    ],
)
def test_contradictions_are_refused(tiny_models, arguments, words):
    with pytest.raises(ModelError, match=words):
        load_model(tiny_models.path("gpt2"), **arguments)


def test_what_lies_in_one_place_is_not_called_spread(tiny_models):
    model = load_model(tiny_models.path("gpt2"), device_map="auto")
    assert (model.info.warnings, model.info.device_map) == ((), "auto")


def test_a_native_checkpoint_is_not_spread(tiny_models):
    with pytest.raises(ModelError, match="own format"):
        load_model(tiny_models.path("native"), device_map="auto")


def test_an_architecture_that_nnsight_does_not_know(folder):
    with pytest.raises(ModelError, match="Only nnsight"):
        load_model(save_hugging_face(folder, "codegen"), device_map="auto")
