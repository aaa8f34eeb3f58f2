"""Patching sweeps against one full forward pass for each cell of each pair."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery.engine import Engine
from discovery.errors import MeasurementError, SiteError
from discovery.methods.ablation import ablate_heads
from discovery.methods.patching import (
    Sweep,
    patch_sweep,
)
from discovery.sites import SITE_NAMES, Direction, MetricName, SiteName
from discovery.tasks.task import EncodedPair, Task
from tests.oracles.patching import activation_patching

DIRECTIONS: tuple[Direction, ...] = ("denoising", "noising")
LENGTHS = (5, 3, 6)
MODELS = ("gpt2", "llama", "neox", "opt", "native", "attn_only", "rotary")


def lacks(model: Any, site: SiteName) -> bool:
    if site == "pattern":
        return not model.abilities.pattern
    no_middle = site == "resid_mid" and (model.info.parallel or model.info.attn_only)
    return no_middle or (site == "mlp_out" and model.info.attn_only)


def assert_equal(got: Sweep, truth: activation_patching.NaiveSweep, metric: MetricName) -> None:
    """Within 1e-5, NaN at the same cells."""
    close = {"atol": 1e-5, "rtol": 1e-5, "equal_nan": True}
    torch.testing.assert_close(got.per_pair.double(), truth.per_pair(metric), **close)
    torch.testing.assert_close(got.metric_clean.double(), truth.base(metric, "clean"), **close)
    torch.testing.assert_close(
        got.metric_corrupted.double(), truth.base(metric, "corrupted"), **close
    )
    expected = truth.values(metric, got.direction)
    gap = (truth.base(metric, "clean") - truth.base(metric, "corrupted")).mean().abs()
    assert got.values.dtype == torch.float32
    torch.testing.assert_close(
        got.values.double(), expected, atol=1e-4 / min(1.0, float(gap)), rtol=1e-4, equal_nan=True
    )


@pytest.mark.parametrize("site", SITE_NAMES)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in ("opt", "rotary") else name
        for name in MODELS
    ],
)
def test_every_site_is_the_naive_loop(tiny_models, name, site):
    """Prompts of unequal length with sets of answers, in float64.

    One model takes both directions and all metrics; the others take turns.
    """
    model = tiny_models.load(name, dtype="float64")
    task = as_task(random_pairs(LENGTHS, seed=1, sets=2))
    if lacks(model, site):
        with pytest.raises(SiteError):
            patch_sweep(model, task, site)
        return
    takes_everything = name in ("native", "gpt2")
    for direction in (
        DIRECTIONS if takes_everything else DIRECTIONS[SITE_NAMES.index(site) % 2 :][:1]
    ):
        truth = None
        for metric in (
            activation_patching.METRICS
            if name == "native"
            else activation_patching.METRICS[SITE_NAMES.index(site) % 3 :][:1]
        ):
            got = patch_sweep(model, task, site, direction=direction, metric=metric)
            if truth is None:
                truth = activation_patching.naive_sweep(
                    model, task.pairs, site, direction, got.positions, alone=name == "native"
                )
            assert_equal(got, truth, metric)
            assert (got.site, got.direction, got.metric) == (site, direction, metric)
            assert got.values.shape == got.per_pair.shape[1:]
            assert len(got.axes) == got.values.ndim


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "head_out", "head_out_by_position"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "rotary"])
def test_in_single_precision(tiny_models, name, site):
    model = tiny_models.load(name)
    task = as_task(random_pairs(LENGTHS, seed=2))
    got = patch_sweep(model, task, site)
    truth = activation_patching.naive_sweep(model, task.pairs, site, "denoising", got.positions)
    scale = float(truth.per_pair("logit_difference").nan_to_num().abs().max())
    torch.testing.assert_close(
        got.per_pair.double(),
        truth.per_pair("logit_difference"),
        atol=2e-5 * max(scale, 1.0),
        rtol=0,
        equal_nan=True,
    )


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.sampled_from(["native", "attn_only", "gpt2"]),
    site=st.sampled_from(
        ["resid_pre", "resid_post", "attn_out", "mlp_out", "head_out", "head_out_by_position", "v"]
    ),
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    changed=st.integers(1, 8),
    same_end=st.booleans(),
    sets=st.integers(1, 3),
    by=st.sampled_from(["position", "label"]),
    seed=st.integers(0, 10**6),
)
def test_any_shape_padding_and_corruption(
    tiny_models, name, site, lengths, changed, same_end, sets, by, seed
):
    """Prompts of one token, differences everywhere or at the last token only, missing labels."""
    model = tiny_models.load(name, dtype="float64")
    if lacks(model, site):
        site = "attn_out"
    task = as_task(
        random_pairs(
            lengths,
            seed,
            changed=changed,
            same_end=same_end and min(lengths) > 1,
            sets=sets,
            labelled=True,
        )
    )
    for direction in DIRECTIONS:
        got = patch_sweep(model, task, site, direction=direction, by=by)
        assert_equal(
            got,
            activation_patching.naive_sweep(model, task.pairs, site, direction, got.positions),
            "logit_difference",
        )


def test_positions_count_from_0_if_all_prompts_have_one_length_and_from_the_end_if_not(
    tiny_models,
):
    model = tiny_models.load("native")
    same = patch_sweep(model, as_task(random_pairs([5, 5])), "resid_pre")
    assert (same.positions, same.axes, same.values.shape) == (
        (0, 1, 2, 3, 4),
        ("layer", "position"),
        (2, 5),
    )
    mixed = patch_sweep(model, as_task(random_pairs([5, 3, 4])), "resid_pre")
    assert mixed.positions == (-5, -4, -3, -2, -1)
    assert mixed.per_pair.isnan()[:, 0].tolist() == [
        [False] * 5,
        [True, True, False, False, False],
        [True, False, False, False, False],
    ]
    heads = patch_sweep(model, as_task(random_pairs([5, 3])), "head_out")
    assert (heads.positions, heads.axes, heads.values.shape) == ((), ("layer", "head"), (2, 3))
    sweep = patch_sweep(model, as_task(random_pairs([5, 3])), "head_out_by_position")
    assert (sweep.axes, sweep.values.shape) == (("layer", "head", "position"), (2, 3, 5))


def test_labels_are_columns_in_the_order_of_their_mean_position(tiny_models):
    model = tiny_models.load("native", dtype="float64")
    first = replace(random_pairs([5])[0], labels={"end": 4, "name": 1})
    second = replace(random_pairs([7], seed=1)[0], labels={"verb": 2, "end": 6, "name": 3})
    task = as_task([first, second])
    got = patch_sweep(model, task, "resid_pre", by="label")
    assert got.positions == ("name", "verb", "end")  # at 2, 2 and 5 on average; ties by name
    assert got.per_pair.isnan()[:, 0].tolist() == [[False, True, False], [False, False, False]]
    whole = patch_sweep(model, task, "resid_pre")
    torch.testing.assert_close(got.per_pair[0, :, 2], whole.per_pair[0, :, -1])
    torch.testing.assert_close(got.per_pair[1, :, 1], whole.per_pair[1, :, 2])
    with pytest.raises(MeasurementError, match="has no labels"):
        patch_sweep(model, as_task(random_pairs([4])), by="label")
    assert (
        patch_sweep(model, as_task(random_pairs([4])), "head_out", by="label").positions == ()
    )  # heads have no positions to label


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    "site",
    [
        "resid_pre",
        "resid_mid",
        "resid_post",
        "attn_out",
        "mlp_out",
        "head_out_by_position",
        "head_out",
    ],
)
def test_cells_that_cannot_change_anything_are_exactly_the_base_run(tiny_models, site, direction):
    """They are before the first difference, or after the last attention but not the answer."""
    model = tiny_models.load("gpt2")
    task = as_task(
        [
            EncodedPair(
                clean=(1, 2, 3, 4, 5, 6), corrupted=(1, 2, 9, 4, 5, 6), answer=(7,), wrong=(8,)
            ),
            EncodedPair(clean=(3, 2, 1, 9, 5), corrupted=(3, 2, 1, 4, 5), answer=(7,), wrong=(8,)),
        ]
    )
    got = patch_sweep(model, task, site, direction=direction)
    base = got.metric_corrupted if direction == "denoising" else got.metric_clean
    if site == "head_out":
        return
    same = got.per_pair == base.reshape(-1, *[1] * (got.per_pair.ndim - 1))
    assert same[0, ..., :2].all()
    assert same[1, ..., 1:4].all()  # the second pair's positions 0 to 2
    last_layer = got.per_pair[:, -1]
    if site != "resid_pre":  # whose change the last layer's attention still moves
        assert (last_layer[..., :-1] == base.reshape(-1, *[1] * (last_layer.ndim - 1)))[
            last_layer[..., :-1].isnan().logical_not()
        ].all()
    assert not same[0, 0, ..., 2].all()


@pytest.mark.parametrize("name", MODELS)
def test_identities(tiny_models, name):
    """The last position of the last layer's stream carries everything; equal embeddings nothing."""
    model = tiny_models.load(name, dtype="float64")
    task = as_task(random_pairs([6, 5, 6], seed=3))
    for direction in DIRECTIONS:
        post = patch_sweep(model, task, "resid_post", direction=direction).values
        assert post[-1, -1] == pytest.approx(1, abs=1e-6)
        assert post[-1, :-1].abs().max() < 1e-6
        pre = patch_sweep(model, task, "resid_pre", direction=direction).values
        assert abs(float(pre[0, -1])) < 1e-6  # last tokens agree: so does what is embedded there
        torch.testing.assert_close(post[:-1], pre[1:], atol=1e-5, rtol=0)
    changed_last = as_task(
        [
            EncodedPair(clean=(1, 2, 3), corrupted=(1, 2, 4), answer=(5,), wrong=(6,)),
            EncodedPair(clean=(7, 2, 3), corrupted=(7, 2, 9), answer=(5,), wrong=(6,)),
        ]
    )
    only = patch_sweep(model, changed_last, "resid_pre").values
    torch.testing.assert_close(
        only[:, -1], torch.ones(model.info.n_layers), atol=1e-5, rtol=0
    )  # all that differs is there
    assert only[:, :-1].abs().max() < 1e-6


def test_a_single_pair(tiny_models):
    model = tiny_models.load("native", dtype="float64")
    task = as_task(random_pairs([5]))
    got = patch_sweep(model, task, "resid_pre")
    assert got.per_pair.shape == (1, 2, 5)
    expected = (got.per_pair[0] - got.metric_corrupted) / (got.metric_clean - got.metric_corrupted)
    torch.testing.assert_close(got.values.double(), expected, atol=1e-6, rtol=1e-5)


def test_the_tasks_metric_is_the_default(tiny_models):
    model = tiny_models.load("native")
    pairs = random_pairs([5, 5])
    assert (
        patch_sweep(model, as_task(pairs, "probability_difference"), "head_out").metric
        == "probability_difference"
    )
    assert (
        patch_sweep(
            model, as_task(pairs, "probability_difference"), "head_out", metric="kl_divergence"
        ).metric
        == "kl_divergence"
    )


def test_divergence_is_from_the_clean_run_in_both_directions(tiny_models):
    model = tiny_models.load("native", dtype="float64")
    task = as_task(random_pairs([5, 5]))
    for direction in DIRECTIONS:
        got = patch_sweep(model, task, "resid_post", direction=direction, metric="kl_divergence")
        torch.testing.assert_close(got.metric_clean, torch.zeros(2, dtype=torch.float64))
        assert (got.metric_corrupted > 0).all()
        whole = got.per_pair[:, -1, -1]
        torch.testing.assert_close(
            whole, got.metric_clean if direction == "denoising" else got.metric_corrupted
        )


@pytest.mark.parametrize(
    ("arguments", "error", "cause"),
    [
        ({"site": "resid"}, SiteError, "site 'resid' is not known"),
        ({"direction": "both"}, MeasurementError, "direction 'both' is not known"),
        ({"metric": "loss"}, MeasurementError, "metric 'loss' is not known"),
        ({"by": "token"}, MeasurementError, "by 'token' is not known"),
    ],
)
def test_unknown_choices(tiny_models, arguments, error, cause):
    with pytest.raises(error, match=cause) as caught:
        patch_sweep(tiny_models.load("native"), as_task(random_pairs([5])), **arguments)
    assert caught.value.cure.startswith("Allowed: ")


def test_an_engine_measures_its_own_metric(tiny_models):
    model = tiny_models.load("native")
    task = as_task(random_pairs([5]))
    engine = Engine(model, task, metric="probability_difference")
    assert patch_sweep(model, task, "head_out", engine=engine).metric == "probability_difference"
    assert (
        patch_sweep(model, task, "head_out", metric="probability_difference", engine=engine).metric
        == "probability_difference"
    )
    for call in (
        lambda: patch_sweep(model, task, metric="kl_divergence", engine=engine),
        lambda: _ablate(model, task, engine),
    ):
        with pytest.raises(
            MeasurementError, match="the given engine measures 'probability_difference'"
        ):
            call()


def _ablate(model: Any, task: Task, engine: Engine) -> None:
    ablate_heads(model, task, ["m0"], metric="kl_divergence", engine=engine)


def test_a_task_without_pairs(tiny_models):
    with pytest.raises(MeasurementError, match="has no pairs to measure"):
        patch_sweep(tiny_models.load("native"), as_task(()))
