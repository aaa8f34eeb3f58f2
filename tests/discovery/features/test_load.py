"""Which SAEs are refused, with the reason, and which are accepted with a warning."""

from __future__ import annotations

import pytest
import torch

from discovery.errors import FeatureError
from discovery.features import load_sae
from tests.tiny_saes import random_module, saelens, save

POST = "blocks.0.hook_resid_post"


@pytest.mark.parametrize(
    "hook", [None, "", "hook_embed", "blocks.0.attn.hook_pattern", "blocks.x.hook_resid_pre"]
)
def test_other_hook_points_are_refused(tiny_models, tmp_path, hook):
    with pytest.raises(FeatureError, match="hook point"):
        load_sae(
            save(random_module("standard", 12, 20, hook), tmp_path / "sae"),
            tiny_models.load("native"),
        )


@pytest.mark.parametrize(
    ("width", "hook", "message"),
    [
        (16, POST, "16 numbers a position, and this model has 12"),
        (12, "blocks.1.attn.hook_z", "12 numbers a position, and this model has 18"),
        (12, "blocks.7.hook_resid_post", "Layer 7 does not exist"),
    ],
)
def test_a_site_that_does_not_fit_is_refused(tiny_models, tmp_path, width, hook, message):
    with pytest.raises(FeatureError, match=message):
        load_sae(
            save(random_module("standard", width, 20, hook), tmp_path / "sae"),
            tiny_models.load("native"),
        )


def test_an_sae_of_an_mlp_needs_an_mlp(tiny_models, tmp_path):
    with pytest.raises(FeatureError, match="attention-only"):
        load_sae(
            save(random_module("standard", 12, 20, "blocks.0.hook_mlp_out"), tmp_path / "sae"),
            tiny_models.load("attn_only"),
        )


def test_an_sae_of_a_single_head_is_refused(tiny_models, tmp_path):
    module = random_module("standard", 12, 20, POST)
    module.cfg.metadata.hook_head_index = 2
    with pytest.raises(FeatureError, match="head 2 alone"):
        load_sae(save(module, tmp_path / "sae"), tiny_models.load("native"))


def test_other_weights_are_refused_unless_forced(tiny_models, tmp_path):
    model = tiny_models.load("native")
    module = random_module("standard", 12, 20, POST)
    module.cfg.metadata.model_fingerprint = "0" * 64
    folder = save(module, tmp_path / "sae")
    with pytest.raises(FeatureError, match="does not belong to this model") as fault:
        load_sae(folder, model)
    for way in (
        "train_sae",
        "circuit-scout sae train",
        "In Python, load_sae(..., force=True)",
    ):  # for an assistant, at a shell, in a notebook
        assert way in fault.value.cure
    assert any("wrong SAE" in note for note in load_sae(folder, model, force=True).warnings)
    module.cfg.metadata.model_fingerprint = model.info.fingerprint
    assert load_sae(save(module, tmp_path / "own"), model).warnings == ()


def test_a_norm_that_is_not_in_the_files_gives_a_warning(tiny_models, tmp_path):
    folder = save(
        random_module("standard", 12, 20, POST, normalize_activations="expected_average_only_in"),
        tmp_path / "sae",
    )
    assert any(
        "expected_average_only_in" in note
        for note in load_sae(folder, tiny_models.load("native")).warnings
    )


def test_what_is_not_an_sae_is_refused(tiny_models, tmp_path, monkeypatch):
    model = tiny_models.load("native")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FeatureError, match="has no cfg"):
        load_sae(tmp_path / "empty", model)
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(FeatureError, match=r"'\.' has no cfg"):
        load_sae(".", model)
    for absent in (tmp_path / "absent", "word", "w" * 5000, "~nobody-of-that-name/sae"):
        with pytest.raises(
            FeatureError, match=r"is no directory, no run in .*, and no release"
        ) as fault:
            load_sae(absent, model)
        assert "the id of a finished training" in fault.value.cure
    folder = save(random_module("standard", 12, 20, POST), tmp_path / "torn")
    (folder / "sae_weights.safetensors").write_bytes(b"torn")
    with pytest.raises(FeatureError, match="'torn' cannot be loaded"):
        load_sae(folder, model)
    folder = save(random_module("standard", 12, 20, POST), tmp_path / "other")
    settings = (folder / "cfg.json").read_text()
    (folder / "cfg.json").write_text(settings.replace('"d_in": 12', '"d_in": 6'))
    with pytest.raises(FeatureError, match="'other' cannot be loaded") as fault:
        load_sae(folder, model)
    assert "size mismatch for" in fault.value.detail
    folder = save(random_module("standard", 12, 20, POST), tmp_path / "odd")
    (folder / "cfg.json").write_text("{")
    with pytest.raises(FeatureError, match="'odd' cannot be loaded"):
        load_sae(folder, model)


@pytest.mark.parametrize(
    "name",
    [
        "gpt2-small-res-jb/blocks.8.hook_resid_pre",
        "gpt2-small-res-jb/no-such-id",
        "no-such-owner/no-such-repository/layer8",
    ],
)
def test_an_unreachable_hub_gives_a_clear_error(tiny_models, name):
    with pytest.raises(FeatureError, match="could not be loaded from the hub") as fault:
        load_sae(name, tiny_models.load("native"))
    assert "directory" in fault.value.cure


def test_the_fingerprint_is_of_the_weights(tiny_models, tmp_path):
    module = random_module("standard", 12, 20, POST)
    first = load_sae(save(module, tmp_path / "a"), tiny_models.load("native")).fingerprint
    assert load_sae(save(module, tmp_path / "b"), tiny_models.load("native")).fingerprint == first
    with torch.no_grad():
        module.b_enc[0] += 1
    assert load_sae(save(module, tmp_path / "c"), tiny_models.load("native")).fingerprint != first


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "gpt2-small-res-jb/blocks.8.hook_resid_pre",
            ("gpt2-small-res-jb", "blocks.8.hook_resid_pre"),
        ),
        (
            "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71",
            ("gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71"),
        ),
        ("owner/repository/layer8/trained", ("owner/repository", "layer8/trained")),
    ],
)
def test_a_hub_name_is_a_release_and_an_id(tiny_models, monkeypatch, source, expected):
    calls = []

    def from_pretrained(release, sae_id, device):
        calls.append((release, sae_id))
        return random_module("standard", 12, 20, POST)

    monkeypatch.setattr(saelens().SAE, "from_pretrained", from_pretrained)
    assert load_sae(source, tiny_models.load("native")).name == source
    assert calls == [expected]
