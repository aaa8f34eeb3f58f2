"""What is refused, with the reason; and what is taken with a warning."""

from __future__ import annotations

import pytest
import torch

from discovery.errors import FeatureError
from discovery.features import FeatureChange, load_sae
from discovery.features.hooks import parse_hook, site_width
from discovery.sites import Site
from tests.tiny_saes import random_module, saelens, save

POST = "blocks.0.hook_resid_post"


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.3.hook_resid_pre", Site("resid_pre", 3)),
        ("blocks.3.hook_mlp_in", Site("resid_mid", 3)),
        ("blocks.12.hook_mlp_out", Site("mlp_out", 12)),
        ("blocks.0.hook_attn_out", Site("attn_out", 0)),
        ("blocks.1.attn.hook_z", Site("z", 1)),
        ("blocks.1.attn.hook_k", Site("k", 1)),
        ("transformer.h.3", Site("resid_post", 3)),
        ("model.layers.20", Site("resid_post", 20)),
    ],
)
def test_hook_points_are_sites(hook, site):
    assert parse_hook(hook) == site


@pytest.mark.parametrize(
    "hook", [None, "", "hook_embed", "blocks.0.attn.hook_pattern", "blocks.x.hook_resid_pre"]
)
def test_other_hook_points_are_refused(tiny_models, tmp_path, hook):
    with pytest.raises(FeatureError, match="hook point"):
        load_sae(
            save(random_module("standard", 12, 20, hook), tmp_path / "sae"),
            tiny_models.load("native"),
        )


@pytest.mark.parametrize("hook", ["blocks.0.ln2.hook_normalized", "blocks.3.mlp.hook_in"])
def test_a_place_behind_a_norm_is_refused_with_the_reason(hook):
    with pytest.raises(FeatureError, match="after a norm"):
        parse_hook(hook)


def test_widths(tiny_models):
    native, rotary = tiny_models.load("native"), tiny_models.load("rotary")
    assert [site_width(native, Site(kind, 0)) for kind in ("resid_pre", "z", "k")] == [12, 18, 18]
    assert [site_width(rotary, Site(kind, 0)) for kind in ("q", "k")] == [24, 12]


@pytest.mark.parametrize(
    ("width", "hook", "said"),
    [
        (16, POST, "16 numbers a position, and this model has 12"),
        (12, "blocks.1.attn.hook_z", "12 numbers a position, and this model has 18"),
        (12, "blocks.7.hook_resid_post", "Layer 7 does not exist"),
    ],
)
def test_a_place_that_does_not_fit_is_refused(tiny_models, tmp_path, width, hook, said):
    with pytest.raises(FeatureError, match=said):
        load_sae(
            save(random_module("standard", width, 20, hook), tmp_path / "sae"),
            tiny_models.load("native"),
        )


def test_no_mlp_no_mlp_dictionary(tiny_models, tmp_path):
    with pytest.raises(FeatureError, match="attention-only"):
        load_sae(
            save(random_module("standard", 12, 20, "blocks.0.hook_mlp_out"), tmp_path / "sae"),
            tiny_models.load("attn_only"),
        )


def test_a_single_heads_dictionary_is_refused(tiny_models, tmp_path):
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


def test_another_hub_model_is_refused(tiny_models, tmp_path):
    from dataclasses import replace

    from discovery.features.hooks import compare_with_model

    model = tiny_models.load("native")
    kept = model.info
    try:
        model.info = replace(kept, name="openai-community/gpt2", revision="abc")
        assert compare_with_model(model, {"model_name": "gpt2-small"}) == (None, None)
        wrong, _ = compare_with_model(model, {"model_name": "pythia-70m"})
        assert wrong is not None
        assert "pythia-70m" in wrong
        model.info = replace(kept, name="somewhere/checkpoint")
        assert compare_with_model(model, {"model_name": "gpt2-small"})[0] is None
        assert (
            compare_with_model(model, {})[1] == "the SAE does not say which model it was trained on"
        )
    finally:
        model.info = kept


def test_a_norm_that_is_not_in_the_files_is_told(tiny_models, tmp_path):
    folder = save(
        random_module("standard", 12, 20, POST, normalize_activations="expected_average_only_in"),
        tmp_path / "sae",
    )
    assert any(
        "expected_average_only_in" in note
        for note in load_sae(folder, tiny_models.load("native")).warnings
    )


def test_what_is_no_sae_is_refused(tiny_models, tmp_path, monkeypatch):
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
def test_the_hub_out_of_reach_is_told_clearly(tiny_models, name):
    with pytest.raises(FeatureError, match="could not be loaded from the hub") as caught:
        load_sae(name, tiny_models.load("native"))
    assert "directory" in caught.value.cure


def test_the_fingerprint_is_of_the_weights(tiny_models, tmp_path):
    module = random_module("standard", 12, 20, POST)
    first = load_sae(save(module, tmp_path / "a"), tiny_models.load("native")).fingerprint
    assert load_sae(save(module, tmp_path / "b"), tiny_models.load("native")).fingerprint == first
    with torch.no_grad():
        module.b_enc[0] += 1
    assert load_sae(save(module, tmp_path / "c"), tiny_models.load("native")).fingerprint != first


@pytest.mark.parametrize(
    ("amounts", "operation", "said"),
    [
        ({}, "set", "No feature"),
        ({20: 1.0}, "set", "0 to 19"),
        ({-1: 1.0}, "set", "0 to 19"),
        ({True: 1.0}, "set", "0 to 19"),
        ({"3": 1.0}, "set", "0 to 19"),
        ({3: float("nan")}, "set", "finite"),
        ({3: "much"}, "set", "finite"),
        ({3: True}, "set", "finite"),
        ([3], "set", "The change is"),
        ({3: 1.0}, "clamp", "set, scale, add"),
    ],
)
def test_changes_that_cannot_hold(amounts, operation, said):
    with pytest.raises(FeatureError, match=said):
        FeatureChange.of(amounts, operation, 20)


@pytest.mark.parametrize(
    ("source", "asked"),
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
def test_a_hub_name_is_a_release_and_an_id(tiny_models, monkeypatch, source, asked):
    called = []

    def from_pretrained(release, sae_id, device):
        called.append((release, sae_id))
        return random_module("standard", 12, 20, POST)

    monkeypatch.setattr(saelens().SAE, "from_pretrained", from_pretrained)
    assert load_sae(source, tiny_models.load("native")).name == source
    assert called == [asked]
