"""Changed features against plain runs of the backend, and what an edit refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.known_circuits.known_circuit import LOGIT_GAIN
from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery import sae_top_features
from discovery.backends.base import Batch
from discovery.errors import FeatureError, MeasurementError
from discovery.features import FeatureChange, load_sae
from discovery.interventions import Edit
from discovery.methods.features import edit_features
from discovery.methods.features.pushes import ShuffledDecoderControl
from discovery.metrics import measure
from discovery.sites import Site
from tests.oracles.models.sae_features import corrupted_metric, metric_by_plain_runs, task_tensors
from tests.tiny_saes import SAE_HOOKS, random_module, save

CLOSE = {"atol": 2e-5, "rtol": 2e-5}


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("hook", SAE_HOOKS)
def test_error_kept_and_nothing_changed_is_the_same_logits(tiny_models, tmp_path, hook, layer):
    model = tiny_models.load("native")
    module = random_module(
        "topk",
        18 if hook[-1] in "zq" else 12,
        30,
        f"blocks.{layer}.{hook}",
        normalize_activations="layer_norm",
    )
    sae = load_sae(save(module, tmp_path / "sae"), model)
    task = as_task(random_pairs((6, 6, 5)))
    for operation, amount in (("scale", 1.0), ("add", 0.0)):
        result = edit_features(
            model, task, sae, dict.fromkeys(range(5), amount), operation=operation, controls=2
        )
        assert torch.equal(result.per_pair, result.per_pair_base)
        assert result.effect.mean == result.effect.low == result.effect.high == 0
    tokens, last, *_ = task_tensors(task)
    clean = model.run(Batch(tokens, last), [sae.writes])
    same = sae.edit(clean.activations[sae.writes], FeatureChange.of({0: 1.0}, "scale", 30))
    assert torch.equal(
        model.run(Batch(tokens, last), edits=[Edit(sae.writes, same)]).logits, clean.logits
    )


@pytest.mark.parametrize("hook", SAE_HOOKS)
@pytest.mark.parametrize("error", ["keep", "drop"])
def test_an_edit_is_what_plain_runs_give(tiny_models, tmp_path, hook, error):
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
    change = {3: 2.0, 7: -1.0}
    result = edit_features(model, task, sae, change, positions=[1, -1], error=error)
    mask = torch.zeros(3, 6, dtype=torch.bool)
    for row, pair in enumerate(task.pairs):
        mask[row, [1, len(pair.clean) - 1]] = True

    def edited(x):
        value = sae.edit(x, FeatureChange.of(change, "set", 30), error=error)
        return torch.where(mask.reshape(3, 6, *[1] * (x.ndim - 2)), value, x)

    expected = metric_by_plain_runs(model, task, sae.writes, edited)
    torch.testing.assert_close(result.per_pair, expected, **CLOSE)
    assert result.effect.mean == pytest.approx(
        float((result.per_pair - result.per_pair_base).mean()), rel=1e-5, abs=1e-6
    )
    assert result.control.n == 8


def test_a_transcoder_reads_one_site_and_writes_another(tiny_models, tmp_path):
    model = tiny_models.load("native")
    module = random_module(
        "skip_transcoder", 12, 24, "blocks.1.hook_resid_mid", hook_out="blocks.1.hook_mlp_out"
    )
    sae = load_sae(save(module, tmp_path / "sae"), model)
    assert (sae.reads, sae.writes) == (Site("resid_mid", 1), Site("mlp_out", 1))
    task = as_task(random_pairs((6, 6, 5)))
    tokens, last, answer, wrong = task_tensors(task)
    seen = model.run(Batch(tokens, last), [sae.reads, sae.writes]).activations
    value = sae.edit(
        seen[sae.reads], FeatureChange.of({4: 3.0}, "add", 24), written=seen[sae.writes]
    )
    logits = model.run(Batch(tokens, last), edits=[Edit(sae.writes, value)]).logits
    result = edit_features(model, task, sae, {4: 3.0}, operation="add")
    torch.testing.assert_close(
        result.per_pair, measure("logit_difference", logits, answer, wrong), **CLOSE
    )
    assert sae_top_features(model, sae, task=task, k=3).features


def test_bad_input_of_an_edit(planted):
    with pytest.raises(MeasurementError, match="keep, drop"):
        edit_features(planted.model, planted.task, planted.between, {0: 0.0}, error="zero")
    with pytest.raises(FeatureError, match="does not exist"):
        edit_features(planted.model, planted.task, planted.between, {10_000: 0.0})
    with pytest.raises(
        FeatureError, match=r"'nothing' is no directory, no run in .*, and no release"
    ):
        edit_features(planted.model, planted.task, "nothing", {0: 0.0})
    with pytest.raises(FeatureError, match=r"The change is \[0\]"):
        edit_features(planted.model, planted.task, planted.between, [0])


@pytest.mark.parametrize("error", ["keep", "drop"])
def test_amounts_that_leave_no_finite_logits_are_refused(planted, error):
    with pytest.raises(
        FeatureError,
        match="With the amount -1e\\+300 of feature 1 the model's logits are not finite",
    ) as fault:
        edit_features(
            planted.model,
            planted.task,
            planted.between,
            {0: 1.0, 1: -1e300},
            operation="add",
            error=error,
        )
    assert "smaller amounts" in fault.value.cure
    assert (
        edit_features(
            planted.model,
            planted.task,
            planted.between,
            {0: 1.0, 1: -1e3},
            operation="add",
            error=error,
        ).control.n
        == 8
    )


def test_a_draw_that_is_nan_counts_against_the_feature():
    assert ShuffledDecoderControl.of(2.0, [1.0, float("nan"), 3.0]).p == 3 / 4
    assert ShuffledDecoderControl.of(float("nan"), [1.0, 2.0, 3.0]).p == 1


def test_steering_a_planted_direction_writes_its_token(planted):
    """After the last layer, two units of an answer's feature add twice the gain to its logit."""
    token = planted.task.pairs[0].answer[0]
    task = replace(planted.task, pairs=planted.task.pairs[:1], splits=(None,))
    feature = planted.number[planted.layout.dims("out")[token]]
    result = edit_features(
        planted.model,
        task,
        planted.after,
        {feature: 2.0},
        operation="add",
        positions=slice(-1, None),
        controls=19,
    )
    assert result.effect.mean == pytest.approx(2 * LOGIT_GAIN, rel=1e-5)
    assert result.control.as_large == 0
    assert result.control.p == pytest.approx(0.05)
    assert result.share == pytest.approx(
        2
        * LOGIT_GAIN
        / float(result.metric_clean - corrupted_metric(planted.model, task.pairs[0])),
        rel=1e-4,
    )
