"""Attribution against the gradient through the decoder, and against removing all features."""

from __future__ import annotations

import pytest
import torch

from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery import sae_top_features
from discovery.backends.base import Batch
from discovery.errors import MeasurementError
from discovery.features import load_sae
from discovery.interventions import Edit
from discovery.methods.features import edit_features
from discovery.metrics import measure
from tests.oracles.models.sae_features import real_positions, task_tensors
from tests.tiny_saes import SAE_HOOKS, random_module, save


@pytest.mark.parametrize("hook", SAE_HOOKS)
def test_attribution_is_the_gradient_through_the_decoder(tiny_models, tmp_path, hook):
    model = tiny_models.load("native")
    module = random_module(
        "standard",
        18 if hook[-1] in "zq" else 12,
        30,
        f"blocks.1.{hook}",
        normalize_activations="layer_norm",
    )
    sae = load_sae(save(module, tmp_path / "sae"), model)
    task = as_task(random_pairs((6, 6, 5)))
    tokens, last, answer, wrong = task_tensors(task)
    clean = model.run(Batch(tokens, last), [sae.writes]).activations[sae.writes]
    codes = sae.codes(clean)
    z = codes.features.clone().requires_grad_()
    value = clean + ((z - codes.features) @ sae.directions() * codes.scale).reshape(clean.shape)
    logits = model.run(Batch(tokens, last), edits=[Edit(sae.writes, value)], grad=True).logits
    slope = torch.autograd.grad(measure("logit_difference", logits, answer, wrong).sum(), z)[0]
    expected = (z * slope * real_positions(task).unsqueeze(-1)).sum(1).mean(0).detach()
    top = sae_top_features(model, sae, task=task, k=5, by="attribution", controls=0)
    assert [feature.index for feature in top.features] == expected.abs().topk(5).indices.tolist()
    for feature in top.features:
        assert feature.attribution.mean == pytest.approx(
            float(expected[feature.index]), rel=1e-3, abs=1e-6
        )


def test_integrated_gradients_sum_to_what_removing_all_features_does(tiny_models, tmp_path):
    model = tiny_models.load("native")
    sae = load_sae(
        save(random_module("standard", 12, 24, "blocks.0.hook_resid_post"), tmp_path / "sae"), model
    )
    task = as_task(random_pairs((6, 6, 6)))
    removed = edit_features(model, task, sae, dict.fromkeys(range(24), 0.0), controls=2)
    assert removed.control is None  # no other features are left to draw from
    gaps = []
    for steps in (1, 256):
        top = sae_top_features(
            model, sae, task=task, k=24, by="attribution", steps=steps, controls=0
        )
        gaps.append(
            abs(sum(feature.attribution.mean for feature in top.features) + removed.effect.mean)
        )
    assert gaps[1] < 0.02 * abs(removed.effect.mean)
    assert gaps[1] < gaps[0]


def test_kl_needs_steps(planted):
    with pytest.raises(MeasurementError, match="no gradient"):
        sae_top_features(planted.model, planted.between, task=planted.task, metric="kl_divergence")
    top = sae_top_features(
        planted.model,
        planted.between,
        task=planted.task,
        metric="kl_divergence",
        by="activation",
        k=2,
    )
    assert all(feature.attribution is None for feature in top.features)
    top = sae_top_features(
        planted.model, planted.between, task=planted.task, metric="kl_divergence", steps=4, k=2
    )
    assert all(feature.attribution is not None for feature in top.features)
    assert all(
        feature.ablation.mean <= 0 for feature in top.features
    )  # without it the model moves away from the clean run
