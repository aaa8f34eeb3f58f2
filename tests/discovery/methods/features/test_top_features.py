"""Planted features: a dictionary whose directions are known, in a model whose circuit is known, is measured to the last digit."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.known_circuits.hand_built import build_known_circuit
from benchmarks.known_circuits.known_circuit import LOGIT_GAIN
from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery import load_model, load_task, sae_top_features
from discovery.backends.base import Batch
from discovery.engine import Engine
from discovery.errors import FeatureError, MeasurementError, TaskError
from discovery.features import FeatureChange, load_sae
from discovery.interventions import Edit
from discovery.methods.features import edit_features
from discovery.methods.features.pushes import ShuffledDecoderControl
from discovery.metrics import measure
from discovery.sites import Site
from tests.tiny_saes import directions_module, random_module, save, signed_basis

PAIRS = 12
CLOSE = {"atol": 2e-5, "rtol": 2e-5}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The induction model, its task, and dictionaries of the residual stream's own directions, in a shuffled order."""
    folder = tmp_path_factory.mktemp("induction")
    case = build_known_circuit("induction")
    case.save(folder / "model")
    model = load_model(folder / "model", device="cpu")
    task = load_task(folder / "model" / "task.jsonl", model, pairs=PAIRS)
    d_model = case.layout.d_model
    order = torch.randperm(2 * d_model, generator=torch.Generator().manual_seed(3))
    directions = signed_basis(d_model)[order]
    number = {
        int(place): feature for feature, place in enumerate(order.tolist()) if place < d_model
    }  # dimension -> feature
    after = load_sae(
        save(
            directions_module(directions, "blocks.1.hook_resid_post", neuronpedia_id="toy/1"),
            folder / "after",
        ),
        model,
    )
    between = load_sae(
        save(directions_module(directions, "blocks.1.hook_resid_pre"), folder / "between"), model
    )
    return SimpleNamespace(
        model=model,
        task=task,
        layout=case.layout,
        after=after,
        between=between,
        number=number,
        directions=directions,
        folder=folder,
    )


def tensors(task):
    pairs = task.pairs
    width = max(len(pair.clean) for pair in pairs)
    tokens = torch.tensor([[*pair.clean, *[0] * (width - len(pair.clean))] for pair in pairs])
    last = torch.tensor([len(pair.clean) - 1 for pair in pairs])
    return (
        tokens,
        last,
        torch.tensor([pair.answer for pair in pairs]),
        torch.tensor([pair.wrong for pair in pairs]),
    )


def metric_by_plain_runs(model, task, site, change):
    """The metric of each pair after `change` of a site's activation, and that activation, by plain runs of the backend."""
    tokens, last, answer, wrong = tensors(task)
    clean = model.run(Batch(tokens, last), [site]).activations[site]
    logits = model.run(Batch(tokens, last), edits=[Edit(site, change(clean))]).logits
    return measure(task.metric, logits, answer, wrong), clean


def real_positions(task):
    tokens, last, *_ = tensors(task)
    return torch.arange(tokens.shape[1]) <= last.unsqueeze(1)


@pytest.mark.parametrize("by", ["activation", "attribution"])
def test_features_behind_the_last_layer_are_recovered_exactly(planted, by):
    """There the metric is linear: 6 · (answer's feature − wrong answer's), so each number is known."""
    model, task, layout = planted.model, planted.task, planted.layout
    tokens, last, answer, wrong = tensors(task)
    site = Site("resid_post", 1)
    stream = model.run(Batch(tokens, last), [site]).activations[site][
        torch.arange(PAIRS), last
    ]  # [pair d_model]
    z = (stream @ planted.directions.T).relu()  # [pair feature]
    out = torch.zeros(layout.d_vocab, layout.d_model)
    out[range(layout.d_vocab), list(layout.dims("out"))] = LOGIT_GAIN
    slope = (out[answer[:, 0]] - out[wrong[:, 0]]) @ planted.directions.T
    truth = {"activation": z.mean(0), "attribution": (z * slope).mean(0)}
    found = sae_top_features(model, planted.after, task=task, positions=[-1], k=7, by=by)
    wanted = truth[by].abs().topk(7)
    assert [feature.index for feature in found.features] == wanted.indices.tolist()
    for feature in found.features:
        assert feature.activation.mean == pytest.approx(
            float(truth["activation"][feature.index]), rel=1e-5
        )
        carried = float(truth["attribution"][feature.index])
        assert feature.attribution.mean == pytest.approx(carried, rel=1e-4, abs=1e-5)
        assert feature.ablation.mean == pytest.approx(carried, rel=1e-4, abs=1e-5)
        assert feature.ablation.low <= feature.ablation.mean <= feature.ablation.high
        assert feature.link == f"https://neuronpedia.org/toy/1/{feature.index}"
    assert found.reconstruction.variance_explained == pytest.approx(1, abs=1e-6)
    assert found.reconstruction.share.mean == pytest.approx(1, abs=1e-5)
    assert not found.reconstruction.poor
    assert found.reconstruction.l0 == pytest.approx(float((z > 0).sum(1).float().mean()))


def test_ordered_by_ablation_the_largest_exact_effect_comes_first(planted):
    """Of the candidates that attribution puts first; behind the last layer both are the same number."""
    exact = sae_top_features(
        planted.model, planted.between, task=planted.task, k=3, by="ablation", controls=0
    )
    every = sae_top_features(
        planted.model, planted.between, task=planted.task, k=32, by="attribution", controls=0
    )
    wanted = sorted(every.features, key=lambda feature: -abs(feature.ablation.mean))[:3]
    assert exact.by == "ablation"
    assert [feature.index for feature in exact.features] == [feature.index for feature in wanted]
    assert [feature.ablation.mean for feature in exact.features] == pytest.approx(
        [feature.ablation.mean for feature in wanted], rel=1e-4
    )


def test_direct_logit_effects_are_the_planted_tokens(planted):
    layout = planted.layout
    found = sae_top_features(planted.model, planted.after, task=planted.task, positions=[-1], k=6)
    token_of = {planted.number[dim]: token for token, dim in enumerate(layout.dims("out"))}
    named = [feature for feature in found.features if feature.index in token_of]
    assert len(named) >= 4
    for feature in named:
        best = feature.direct.promoted[0]
        assert best.token == token_of[feature.index]
        assert best.logit == pytest.approx(LOGIT_GAIN * (1 - 1 / layout.d_vocab), rel=1e-5)
        assert feature.direct.suppressed[0].logit == pytest.approx(
            -LOGIT_GAIN / layout.d_vocab, rel=1e-4
        )


def test_features_between_the_layers_have_the_effect_that_plain_runs_give(planted):
    model, task = planted.model, planted.task
    found = sae_top_features(model, planted.between, task=task, k=6)
    mask = real_positions(task).unsqueeze(-1)
    clean, _ = metric_by_plain_runs(model, task, Site("resid_pre", 1), lambda x: x)
    for feature in found.features:
        direction = planted.directions[feature.index]
        removed, _ = metric_by_plain_runs(
            model,
            task,
            Site("resid_pre", 1),
            lambda x, d=direction: torch.where(mask, x - (x @ d).relu().unsqueeze(-1) * d, x),
        )
        assert feature.ablation.mean == pytest.approx(
            float((clean - removed).mean()), rel=1e-4, abs=1e-5
        )


def test_what_the_induction_head_reads_is_at_the_top(planted):
    """The first copy of A is where the key "previous token is A" stands: at the position behind it, in the subspace `prev`."""
    tokens = planted.task.pairs[0]
    task = replace(planted.task, pairs=(tokens,), splits=(None,))
    asked = tokens.clean[-1]
    wanted = planted.number[planted.layout.content("prev")[asked - 1]]
    place = tokens.clean.index(asked) + 1
    found = sae_top_features(
        planted.model, planted.between, task=task, positions=[place], k=3, steps=16
    )
    assert wanted in [feature.index for feature in found.features]
    feature = next(feature for feature in found.features if feature.index == wanted)
    assert feature.ablation.mean > 1
    assert [firing.token for firing in feature.tokens] == [tokens.clean[place]]
    assert feature.control.as_large == 0
    assert any("one prompt" in warning for warning in found.warnings)


def test_consistency_tells_a_feature_of_the_task_from_one_of_all_text(planted):
    found = sae_top_features(
        planted.model, planted.between, task=planted.task, k=60, by="activation", controls=0
    )
    first = next(
        f for f in found.features if f.index == planted.number[planted.layout.dims("tok")[0]]
    )
    assert first.consistency.clean.share == first.consistency.corrupted.share == 1
    assert first.consistency.clean.activation == pytest.approx(first.activation.mean)
    assert (
        first.consistency.unrelated.activation < 0.6 < first.consistency.clean.activation
    )  # token 0 opens few random prompts
    position = next(
        f for f in found.features if f.index == planted.number[planted.layout.dims("pos")[2]]
    )
    assert position.consistency.unrelated.share == 1
    assert position.consistency.unrelated.activation == pytest.approx(
        position.consistency.clean.activation, rel=0.1
    )
    assert all(feature.control is None for feature in found.features)


SITES = [
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
    "attn.hook_z",
    "attn.hook_q",
]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("hook", SITES)
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
        found = edit_features(
            model, task, sae, dict.fromkeys(range(5), amount), operation=operation, controls=2
        )
        assert torch.equal(found.per_pair, found.per_pair_base)
        assert found.effect.mean == found.effect.low == found.effect.high == 0
    tokens, last, *_ = tensors(task)
    clean = model.run(Batch(tokens, last), [sae.writes])
    same = sae.edit(clean.activations[sae.writes], FeatureChange.of({0: 1.0}, "scale", 30))
    assert torch.equal(
        model.run(Batch(tokens, last), edits=[Edit(sae.writes, same)]).logits, clean.logits
    )


@pytest.mark.parametrize("hook", SITES)
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
    found = edit_features(model, task, sae, change, positions=[1, -1], error=error)
    mask = torch.zeros(3, 6, dtype=torch.bool)
    for row, pair in enumerate(task.pairs):
        mask[row, [1, len(pair.clean) - 1]] = True

    def edited(x):
        value = sae.edit(x, FeatureChange.of(change, "set", 30), error=error)
        return torch.where(mask.reshape(3, 6, *[1] * (x.ndim - 2)), value, x)

    wanted, _ = metric_by_plain_runs(model, task, sae.writes, edited)
    torch.testing.assert_close(found.per_pair, wanted, **CLOSE)
    assert found.effect.mean == pytest.approx(
        float((found.per_pair - found.per_pair_base).mean()), rel=1e-5, abs=1e-6
    )
    assert found.control.n == 8


@pytest.mark.parametrize("hook", SITES)
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
    tokens, last, answer, wrong = tensors(task)
    clean = model.run(Batch(tokens, last), [sae.writes]).activations[sae.writes]
    codes = sae.codes(clean)
    z = codes.features.clone().requires_grad_()
    value = clean + ((z - codes.features) @ sae.directions() * codes.scale).reshape(clean.shape)
    logits = model.run(Batch(tokens, last), edits=[Edit(sae.writes, value)], grad=True).logits
    slope = torch.autograd.grad(measure("logit_difference", logits, answer, wrong).sum(), z)[0]
    wanted = (z * slope * real_positions(task).unsqueeze(-1)).sum(1).mean(0).detach()
    found = sae_top_features(model, sae, task=task, k=5, by="attribution", controls=0)
    assert [feature.index for feature in found.features] == wanted.abs().topk(5).indices.tolist()
    for feature in found.features:
        assert feature.attribution.mean == pytest.approx(
            float(wanted[feature.index]), rel=1e-3, abs=1e-6
        )


def test_integrated_gradients_sum_to_what_removing_all_features_does(tiny_models, tmp_path):
    model = tiny_models.load("native")
    sae = load_sae(
        save(random_module("standard", 12, 24, "blocks.0.hook_resid_post"), tmp_path / "sae"), model
    )
    task = as_task(random_pairs((6, 6, 6)))
    every = edit_features(model, task, sae, dict.fromkeys(range(24), 0.0), controls=2)
    assert every.control is None  # no other features are left to draw from
    gaps = []
    for steps in (1, 256):
        found = sae_top_features(
            model, sae, task=task, k=24, by="attribution", steps=steps, controls=0
        )
        gaps.append(
            abs(sum(feature.attribution.mean for feature in found.features) + every.effect.mean)
        )
    assert gaps[1] < 0.02 * abs(every.effect.mean)
    assert gaps[1] < gaps[0]


def test_a_transcoder_reads_one_site_and_writes_another(tiny_models, tmp_path):
    model = tiny_models.load("native")
    module = random_module(
        "skip_transcoder", 12, 24, "blocks.1.hook_resid_mid", hook_out="blocks.1.hook_mlp_out"
    )
    sae = load_sae(save(module, tmp_path / "sae"), model)
    assert (sae.reads, sae.writes) == (Site("resid_mid", 1), Site("mlp_out", 1))
    task = as_task(random_pairs((6, 6, 5)))
    tokens, last, answer, wrong = tensors(task)
    seen = model.run(Batch(tokens, last), [sae.reads, sae.writes]).activations
    value = sae.edit(
        seen[sae.reads], FeatureChange.of({4: 3.0}, "add", 24), written=seen[sae.writes]
    )
    logits = model.run(Batch(tokens, last), edits=[Edit(sae.writes, value)]).logits
    found = edit_features(model, task, sae, {4: 3.0}, operation="add")
    torch.testing.assert_close(
        found.per_pair, measure("logit_difference", logits, answer, wrong), **CLOSE
    )
    assert sae_top_features(model, sae, task=task, k=3).features


def test_a_poor_reconstruction_is_said_first(planted):
    kept = planted.directions[::3]
    sae = load_sae(
        save(directions_module(kept, "blocks.1.hook_resid_post"), planted.folder / "poor"),
        planted.model,
    )
    found = sae_top_features(planted.model, sae, task=planted.task, positions=["end"], k=2)
    assert found.reconstruction.poor
    assert found.warnings[0].startswith("POOR RECONSTRUCTION")
    assert (
        edit_features(planted.model, planted.task, sae, {0: 0.0})
        .warnings[0]
        .startswith("POOR RECONSTRUCTION")
    )


def test_pairs_taken_block_by_block_give_the_same(planted):
    whole = sae_top_features(planted.model, planted.between, task=planted.task, k=4)
    assert len(list(Engine(planted.model, planted.task, memory=1_200_000).blocks())) > 1
    parts = sae_top_features(
        planted.model, planted.between, task=planted.task, k=4, memory=1_200_000
    )
    for one, other in zip(whole.features, parts.features, strict=True):
        assert one.index == other.index
        assert one.ablation.mean == pytest.approx(other.ablation.mean, rel=1e-4, abs=1e-6)
        assert one.attribution.mean == pytest.approx(other.attribution.mean, rel=1e-4, abs=1e-6)
        assert one.tokens == other.tokens
        for side in ("clean", "corrupted", "unrelated"):
            fires, again = getattr(one.consistency, side), getattr(other.consistency, side)
            assert (fires.share, fires.activation) == (
                again.share,
                pytest.approx(again.activation, rel=1e-5),
            )
    assert parts.reconstruction.variance_explained == pytest.approx(
        whole.reconstruction.variance_explained
    )


def test_a_prompt_is_measured_by_its_likeliest_token_over_the_runner_up(planted):
    prompt = planted.task.pairs[0].clean
    found = sae_top_features(planted.model, str(planted.folder / "between"), prompt=prompt, k=3)
    assert found.by == "activation"
    tokens = torch.tensor([prompt])
    logits = planted.model.run(Batch(tokens, torch.tensor([len(prompt) - 1]))).logits[0]
    assert [found.answer, found.wrong] == logits.topk(2).indices.tolist()
    assert found.metric_clean == pytest.approx(
        float(logits[found.answer] - logits[found.wrong]), rel=1e-4
    )
    assert all(feature.consistency.corrupted is None for feature in found.features)
    assert found.cost.forward_equivalents > 1


def test_kl_needs_steps(planted):
    with pytest.raises(MeasurementError, match="no gradient"):
        sae_top_features(planted.model, planted.between, task=planted.task, metric="kl_divergence")
    found = sae_top_features(
        planted.model,
        planted.between,
        task=planted.task,
        metric="kl_divergence",
        by="activation",
        k=2,
    )
    assert all(feature.attribution is None for feature in found.features)
    found = sae_top_features(
        planted.model, planted.between, task=planted.task, metric="kl_divergence", steps=4, k=2
    )
    assert all(feature.attribution is not None for feature in found.features)
    assert all(
        feature.ablation.mean <= 0 for feature in found.features
    )  # without it the model moves away from the clean run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "Neither a prompt nor a task"),
        ({"prompt": (1, 2), "task": True}, "Both a prompt and a task"),
        ({"prompt": "text"}, "no tokenizer"),
        ({"prompt": (1, 99)}, "Token id 99"),
        ({"task": True, "by": "size"}, "'size' is not known"),
        ({"task": True, "by": ""}, "by '' is not known"),
        ({"task": True, "k": 0}, "k is 0"),
        ({"task": True, "k": 1.5}, "k is 1.5"),
        ({"task": True, "k": True}, "k is True"),
        ({"task": True, "steps": 0}, "steps is 0"),
        ({"task": True, "steps": "2"}, "steps is '2'"),
        ({"task": True, "controls": 0.5}, "controls is 0.5"),
        ({"task": True, "top_tokens": -1}, "top_tokens is -1"),
        ({"task": True, "positions": [99]}, "none of the positions"),
        ({"task": True, "positions": []}, "positions is"),
        ({"task": True, "positions": "end"}, "positions is"),
        ({"task": True, "positions": 3}, "positions is 3"),
        ({"task": True, "positions": [-1, 99]}, "No pair has the position 99"),
        ({"task": True, "positions": [-1, "nowhere"]}, "No pair has the position 'nowhere'"),
        ({"task": True, "positions": [1.5]}, "1.5 is not a position"),
        ({"task": True, "positions": slice(90, None)}, "none of the positions"),
        ({"task": True, "positions": ["nowhere"]}, "none of the positions"),
        ({"task": True, "metric": "loss"}, "'loss' is not known"),
        ({"task": True, "unrelated": []}, "unrelated is empty"),
        ({"task": True, "unrelated": [(1, 99)]}, "cannot be run"),
        ({"task": True, "unrelated": ["text"]}, "no tokenizer"),
    ],
)
def test_bad_input_of_the_top(planted, arguments, said):
    if arguments.get("task"):
        arguments = arguments | {"task": planted.task}
    with pytest.raises(MeasurementError, match=said):
        sae_top_features(planted.model, planted.between, **arguments)


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
def test_amounts_that_leave_no_logits_are_refused_and_say_nothing_of_chance(planted, error):
    with pytest.raises(
        FeatureError,
        match="With the amount -1e\\+300 of feature 1 the model's logits are no numbers",
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


def test_a_draw_that_is_no_number_speaks_against_the_feature():
    assert ShuffledDecoderControl.of(2.0, [1.0, float("nan"), 3.0]).p == 3 / 4
    assert ShuffledDecoderControl.of(float("nan"), [1.0, 2.0, 3.0]).p == 1


def test_a_task_is_one_its_file_its_pairs_or_its_name(planted, tmp_path):
    """The same pairs however they are named: of a path or a name as many as are drawn by default, of a list all."""
    pairs = planted.task.pairs[:5]
    lines = [
        {
            "clean": list(pair.clean),
            "corrupted": list(pair.corrupted),
            "answer": list(pair.answer),
            "wrong": list(pair.wrong),
        }
        for pair in pairs
    ]
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = [replace(planted.task, pairs=pairs, splits=(None,) * 5), lines, path, str(path)]
    found = [
        sae_top_features(planted.model, planted.between, task=task, k=3, controls=0).features
        for task in given
    ]
    assert [[(one.index, one.ablation.mean) for one in features] for features in found] == [
        [(one.index, one.ablation.mean) for one in found[0]]
    ] * 4
    edited = [
        edit_features(planted.model, task, planted.between, {found[0][0].index: 0.0}, controls=0)
        for task in given
    ]
    assert {one.effect.mean for one in edited} == {edited[0].effect.mean}
    with pytest.raises(TaskError, match="'iox' is neither a built-in task nor a file"):
        edit_features(planted.model, "iox", planted.between, {0: 0.0})


def test_a_loaded_dictionary_must_fit_too(planted, tiny_models):
    with pytest.raises(FeatureError, match="numbers a position"):
        sae_top_features(tiny_models.load("native"), planted.between, prompt=(1, 2, 3))


def test_where_nothing_differs_there_is_no_share(planted):
    pair = planted.task.pairs[0]
    task = replace(planted.task, pairs=(replace(pair, corrupted=pair.clean),), splits=(None,))
    found = sae_top_features(planted.model, planted.between, task=task, k=1)
    assert found.reconstruction.share is None
    assert edit_features(planted.model, task, planted.between, {0: 0.0}).share is None


def test_steering_a_planted_direction_writes_its_token(planted):
    """Two units of an answer's feature behind the last layer are two gains on its logit; no other direction does as much."""
    token = planted.task.pairs[0].answer[0]
    task = replace(planted.task, pairs=planted.task.pairs[:1], splits=(None,))
    feature = planted.number[planted.layout.dims("out")[token]]
    found = edit_features(
        planted.model,
        task,
        planted.after,
        {feature: 2.0},
        operation="add",
        positions=slice(-1, None),
        controls=19,
    )
    assert found.effect.mean == pytest.approx(2 * LOGIT_GAIN, rel=1e-5)
    assert found.control.as_large == 0
    assert found.control.p == pytest.approx(0.05)
    assert found.share == pytest.approx(
        2 * LOGIT_GAIN / float(found.metric_clean - corrupted_metric(planted, task)), rel=1e-4
    )


def corrupted_metric(planted, task):
    pair = task.pairs[0]
    logits = planted.model.run(
        Batch(torch.tensor([pair.corrupted]), torch.tensor([len(pair.corrupted) - 1]))
    ).logits[0]
    return float(logits[pair.answer[0]] - logits[pair.wrong[0]])


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("gpt2", "float32"), ("llama", "float32"), ("neox", "float64"), ("gemma", "float32")],
)
def test_architectures_and_dtypes(tiny_models, tmp_path, kind, dtype):
    model = tiny_models.load(kind, dtype=dtype)
    task = as_task(random_pairs((6, 5, 6)))
    for hook in ("blocks.1.hook_resid_pre", "blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"):
        sae = load_sae(
            save(directions_module(signed_basis(16, seed=1), hook), tmp_path / hook), model
        )
        found = sae_top_features(model, sae, task=task, k=2, controls=1)
        assert found.reconstruction.variance_explained == pytest.approx(1, abs=1e-3)
        for feature in found.features:
            assert len(feature.direct.promoted) == len(feature.direct.suppressed) == 5
            assert feature.direct.promoted[0].logit >= 0 >= feature.direct.suppressed[0].logit
        same = edit_features(model, task, sae, {0: 1.0}, operation="scale", controls=1)
        assert torch.equal(same.per_pair, same.per_pair_base)


def test_direct_effects_linearise_the_final_norm(tiny_models, tmp_path):
    """Against a small step along the direction at the final residual stream, before norm and unembedding."""
    model = tiny_models.load("native")
    sae = load_sae(
        save(
            directions_module(signed_basis(12, seed=2), "blocks.0.hook_resid_post"),
            tmp_path / "sae",
        ),
        model,
    )
    task = as_task(random_pairs((6, 6, 5)))
    tokens, last, *_ = tensors(task)
    found = sae_top_features(model, sae, task=task, k=2, controls=0, top_tokens=3)
    final = Site("resid_post", 1)
    stream = model.run(Batch(tokens, last), [final]).activations[final]
    for feature in found.features:
        step = 0.05 * sae.directions([feature.index])
        high, low = (
            model.run(Batch(tokens, last), edits=[Edit(final, stream + sign * step)]).logits
            for sign in (1, -1)
        )
        slope = ((high - low) / 0.1).mean(0)
        slope = slope - slope.mean()
        assert [effect.token for effect in feature.direct.promoted] == slope.topk(
            3
        ).indices.tolist()
        assert [effect.logit for effect in feature.direct.promoted] == pytest.approx(
            slope.topk(3).values.tolist(), rel=0.02
        )


def test_a_dictionary_that_never_fires_has_no_top(planted):
    module = directions_module(planted.directions, "blocks.1.hook_resid_pre")
    with torch.no_grad():
        module.b_enc.fill_(-100.0)
    sae = load_sae(save(module, planted.folder / "dead"), planted.model)
    found = sae_top_features(planted.model, sae, task=planted.task)
    assert found.features == ()
    assert found.reconstruction.l0 == 0
    assert found.warnings[0].startswith("POOR RECONSTRUCTION")
    kept = edit_features(planted.model, planted.task, sae, {0: 0.0})
    assert kept.effect.mean == 0
    assert kept.control.p == 1


def test_progress_can_stop_the_work(planted):
    from discovery.errors import Interrupted

    labels = []

    def stop(done, total, label):
        labels.append(label)
        if label == "feature ablation":
            raise Interrupted

    with pytest.raises(Interrupted):
        sae_top_features(planted.model, planted.between, task=planted.task, k=2, progress=stop)
    assert {"reconstruction", "attribution", "feature ablation"} <= set(labels)
