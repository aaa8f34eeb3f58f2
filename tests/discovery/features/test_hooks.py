"""Hook points as sites, and which model an SAE belongs to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from discovery.errors import FeatureError
from discovery.features.hooks import (
    compare_with_model,
    format_hook,
    parse_hook,
    parse_site,
    site_width,
)
from discovery.sites import Site


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


@pytest.mark.parametrize("hook", ["blocks.0.ln2.hook_normalized", "blocks.3.mlp.hook_in"])
def test_a_hook_after_a_norm_is_refused_with_the_reason(hook):
    with pytest.raises(FeatureError, match="after a norm"):
        parse_hook(hook)


def test_widths(tiny_models):
    native, rotary = tiny_models.load("native"), tiny_models.load("rotary")
    assert [site_width(native, Site(kind, 0)) for kind in ("resid_pre", "z", "k")] == [12, 18, 18]
    assert [site_width(rotary, Site(kind, 0)) for kind in ("q", "k")] == [24, 12]


def test_another_hub_model_is_refused(tiny_models, tmp_path):
    model = tiny_models.load("native")
    info = model.info
    try:
        model.info = replace(info, name="openai-community/gpt2", revision="abc")
        assert compare_with_model(model, {"model_name": "gpt2-small"}) == (None, None)
        wrong, _ = compare_with_model(model, {"model_name": "pythia-70m"})
        assert wrong is not None
        assert "pythia-70m" in wrong
        model.info = replace(info, name="somewhere/checkpoint")
        assert compare_with_model(model, {"model_name": "gpt2-small"})[0] is None
        assert (
            compare_with_model(model, {})[1] == "the SAE does not say which model it was trained on"
        )
    finally:
        model.info = info


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("resid_post.2", Site("resid_post", 2)),
        ("z.0", Site("z", 0)),
        ("blocks.3.hook_mlp_out", Site("mlp_out", 3)),
    ],
)
def test_sites_have_two_names(name, site):
    assert parse_site(name) == site
    assert parse_hook(format_hook(site)) == site
