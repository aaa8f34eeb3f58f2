"""Sweeps and ablations agree between the backends, in float32.

They differ by at most 1e-4 of m(clean) − m(corrupted).
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.random_models.tiny_models import (
    ARCHITECTURES,
    OTHER_ARCHITECTURES,
    as_task,
    random_pairs,
)
from discovery.errors import SiteError
from discovery.methods.ablation import ablate_heads
from discovery.methods.patching import patch_sweep
from discovery.sites import SITE_NAMES, Ablation

CLOSE = 1e-4
NATIVE = ("native", "attn_only", "rotary")
UNKNOWN = ("codegen", "falcon", "falcon_sequential", "granite")  # to nnsight
NAMES = [
    *ARCHITECTURES,
    *NATIVE,
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in OTHER_ARCHITECTURES
        if name not in UNKNOWN
    ),
]


def gap(measured) -> float:
    """|m(clean) − m(corrupted)|, of means over pairs."""
    difference = abs(float((measured.metric_clean - measured.metric_corrupted).mean()))
    assert difference > 0.05
    return difference


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_sweeps_agree(tiny_models, name, direction):
    theirs = tiny_models.load(name)
    ours = tiny_models.load(name, "nnsight")
    task = as_task(random_pairs([6, 4, 7, 7], seed=1))
    sites = []
    for site in SITE_NAMES:
        try:
            expected = patch_sweep(theirs, task, site, direction=direction)
        except SiteError:
            continue  # TransformerLens cannot replace each model's pattern
        if (name, site) == ("xglm", "pattern"):
            continue
        got = patch_sweep(ours, task, site, direction=direction)
        atol = CLOSE * gap(expected)
        torch.testing.assert_close(
            got.per_pair,
            expected.per_pair,
            atol=atol,
            rtol=0,
            equal_nan=True,
            msg=lambda text, at=site: f"{at}: {text}",
        )
        torch.testing.assert_close(got.values, expected.values, atol=CLOSE, rtol=0, equal_nan=True)
        if name not in (
            "mpt",
            "xglm",
        ):  # where only nnsight can resume after a prefix, or give the last MLP one position
            assert got.cost.forward_equivalents == pytest.approx(expected.cost.forward_equivalents)
        sites.append(site)
    assert {
        "resid_pre",
        "resid_post",
        "attn_out",
        "head_out",
        "head_out_by_position",
        "q",
        "k",
        "v",
    } <= set(sites)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_ablations_agree(tiny_models, name, ablation: Ablation):
    theirs = tiny_models.load(name)
    ours = tiny_models.load(name, "nnsight")
    task = as_task(random_pairs([6, 4, 7, 7], seed=1))
    nodes = ["a0.h1", "a1.h0"] + ([] if theirs.info.attn_only else ["m1"])
    reference = patch_sweep(theirs, task, "resid_post")
    got, expected = (
        ablate_heads(model, task, nodes, ablation=ablation) for model in (ours, theirs)
    )
    torch.testing.assert_close(got.per_pair, expected.per_pair, atol=CLOSE * gap(reference), rtol=0)
    assert abs(expected.metric_clean - expected.metric_ablated) > 1e-4
