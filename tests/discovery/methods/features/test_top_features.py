"""Planted features: an SAE whose directions are known, in a model whose circuit is known."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.known_circuits.known_circuit import LOGIT_GAIN
from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery import sae_top_features
from discovery.backends.base import Batch
from discovery.engine import Engine
from discovery.errors import FeatureError, Interrupted, MeasurementError, TaskError
from discovery.features import load_sae
from discovery.interventions import Edit
from discovery.methods.features import edit_features
from discovery.sites import Site
from tests.oracles.models.sae_features import metric_by_plain_runs, real_positions, task_tensors
from tests.tiny_saes import directions_module, save, signed_basis


@pytest.mark.parametrize("by", ["activation", "attribution"])
def test_features_behind_the_last_layer_are_recovered_exactly(planted, by):
    """The metric is linear there: 6 · (answer's feature − wrong answer's), so it is known."""
    model, task, layout = planted.model, planted.task, planted.layout
    tokens, last, answer, wrong = task_tensors(task)
    site = Site("resid_post", 1)
    stream = model.run(Batch(tokens, last), [site]).activations[site][
        torch.arange(len(task)), last
    ]  # [pair d_model]
    z = (stream @ planted.directions.T).relu()  # [pair feature]
    out = torch.zeros(layout.d_vocab, layout.d_model)
    out[range(layout.d_vocab), list(layout.dims("out"))] = LOGIT_GAIN
    slope = (out[answer[:, 0]] - out[wrong[:, 0]]) @ planted.directions.T
    truth = {"activation": z.mean(0), "attribution": (z * slope).mean(0)}
    top = sae_top_features(model, planted.after, task=task, positions=[-1], k=7, by=by)
    expected = truth[by].abs().topk(7)
    assert [feature.index for feature in top.features] == expected.indices.tolist()
    for feature in top.features:
        assert feature.activation.mean == pytest.approx(
            float(truth["activation"][feature.index]), rel=1e-5
        )
        carried = float(truth["attribution"][feature.index])
        assert feature.attribution.mean == pytest.approx(carried, rel=1e-4, abs=1e-5)
        assert feature.ablation.mean == pytest.approx(carried, rel=1e-4, abs=1e-5)
        assert feature.ablation.low <= feature.ablation.mean <= feature.ablation.high
        assert feature.link == f"https://neuronpedia.org/toy/1/{feature.index}"
    assert top.reconstruction.variance_explained == pytest.approx(1, abs=1e-6)
    assert top.reconstruction.share.mean == pytest.approx(1, abs=1e-5)
    assert not top.reconstruction.poor
    assert top.reconstruction.l0 == pytest.approx(float((z > 0).sum(1).float().mean()))


def test_ordered_by_ablation_the_largest_exact_effect_comes_first(planted):
    """The candidates are those that attribution puts first."""
    by_ablation = sae_top_features(
        planted.model, planted.between, task=planted.task, k=3, by="ablation", controls=0
    )
    by_attribution = sae_top_features(
        planted.model, planted.between, task=planted.task, k=32, by="attribution", controls=0
    )
    expected = sorted(by_attribution.features, key=lambda feature: -abs(feature.ablation.mean))[:3]
    assert by_ablation.by == "ablation"
    assert [feature.index for feature in by_ablation.features] == [
        feature.index for feature in expected
    ]
    assert [feature.ablation.mean for feature in by_ablation.features] == pytest.approx(
        [feature.ablation.mean for feature in expected], rel=1e-4
    )


def test_direct_logit_effects_are_the_planted_tokens(planted):
    layout = planted.layout
    top = sae_top_features(planted.model, planted.after, task=planted.task, positions=[-1], k=6)
    token_of = {planted.number[dim]: token for token, dim in enumerate(layout.dims("out"))}
    named = [feature for feature in top.features if feature.index in token_of]
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
    top = sae_top_features(model, planted.between, task=task, k=6)
    mask = real_positions(task).unsqueeze(-1)
    clean = metric_by_plain_runs(model, task, Site("resid_pre", 1), lambda x: x)
    for feature in top.features:
        direction = planted.directions[feature.index]
        removed = metric_by_plain_runs(
            model,
            task,
            Site("resid_pre", 1),
            lambda x, d=direction: torch.where(mask, x - (x @ d).relu().unsqueeze(-1) * d, x),
        )
        assert feature.ablation.mean == pytest.approx(
            float((clean - removed).mean()), rel=1e-4, abs=1e-5
        )


def test_what_the_induction_head_reads_is_at_the_top(planted):
    """The key "previous token is A" stands in `prev`, one position after the first A."""
    tokens = planted.task.pairs[0]
    task = replace(planted.task, pairs=(tokens,), splits=(None,))
    last = tokens.clean[-1]
    expected = planted.number[planted.layout.content("prev")[last - 1]]
    place = tokens.clean.index(last) + 1
    top = sae_top_features(
        planted.model, planted.between, task=task, positions=[place], k=3, steps=16
    )
    assert expected in [feature.index for feature in top.features]
    feature = next(feature for feature in top.features if feature.index == expected)
    assert feature.ablation.mean > 1
    assert [firing.token for firing in feature.tokens] == [tokens.clean[place]]
    assert feature.control.as_large == 0
    assert any("one prompt" in warning for warning in top.warnings)


def test_consistency_tells_a_feature_of_the_task_from_one_of_all_text(planted):
    top = sae_top_features(
        planted.model, planted.between, task=planted.task, k=60, by="activation", controls=0
    )
    first = next(
        f for f in top.features if f.index == planted.number[planted.layout.dims("tok")[0]]
    )
    assert first.consistency.clean.share == first.consistency.corrupted.share == 1
    assert first.consistency.clean.activation == pytest.approx(first.activation.mean)
    assert (
        first.consistency.unrelated.activation < 0.6 < first.consistency.clean.activation
    )  # token 0 opens few random prompts
    position = next(
        f for f in top.features if f.index == planted.number[planted.layout.dims("pos")[2]]
    )
    assert position.consistency.unrelated.share == 1
    assert position.consistency.unrelated.activation == pytest.approx(
        position.consistency.clean.activation, rel=0.1
    )
    assert all(feature.control is None for feature in top.features)


def test_a_poor_reconstruction_is_the_first_warning(planted):
    third = planted.directions[::3]
    sae = load_sae(
        save(directions_module(third, "blocks.1.hook_resid_post"), planted.folder / "poor"),
        planted.model,
    )
    top = sae_top_features(planted.model, sae, task=planted.task, positions=["end"], k=2)
    assert top.reconstruction.poor
    assert top.warnings[0].startswith("POOR RECONSTRUCTION")
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
        for token, again in zip(one.tokens, other.tokens, strict=True):
            # Blocks of other sizes round float32 sums differently, by up to about 1e-7.
            assert replace(token, largest=0.0) == replace(again, largest=0.0)
            assert token.largest == pytest.approx(again.largest, rel=1e-5, abs=1e-6)
        for side in ("clean", "corrupted", "unrelated"):
            fires, again = getattr(one.consistency, side), getattr(other.consistency, side)
            assert (fires.share, fires.activation) == (
                again.share,
                pytest.approx(again.activation, rel=1e-5, abs=1e-6),
            )
    assert parts.reconstruction.variance_explained == pytest.approx(
        whole.reconstruction.variance_explained
    )


def test_a_prompt_is_measured_by_its_likeliest_token_over_the_runner_up(planted):
    prompt = planted.task.pairs[0].clean
    top = sae_top_features(planted.model, str(planted.folder / "between"), prompt=prompt, k=3)
    assert top.by == "activation"
    tokens = torch.tensor([prompt])
    logits = planted.model.run(Batch(tokens, torch.tensor([len(prompt) - 1]))).logits[0]
    assert [top.answer, top.wrong] == logits.topk(2).indices.tolist()
    assert top.metric_clean == pytest.approx(
        float(logits[top.answer] - logits[top.wrong]), rel=1e-4
    )
    assert all(feature.consistency.corrupted is None for feature in top.features)
    assert top.cost.forward_equivalents > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
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
def test_bad_input(planted, arguments, message):
    if arguments.get("task"):
        arguments = arguments | {"task": planted.task}
    with pytest.raises(MeasurementError, match=message):
        sae_top_features(planted.model, planted.between, **arguments)


def test_a_task_is_one_its_file_its_pairs_or_its_name(planted, tmp_path):
    """A task, a list of its pairs, and the path of its file give the same results."""
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
    tasks = [replace(planted.task, pairs=pairs, splits=(None,) * 5), lines, path, str(path)]
    top = [
        sae_top_features(planted.model, planted.between, task=task, k=3, controls=0).features
        for task in tasks
    ]
    assert [[(one.index, one.ablation.mean) for one in features] for features in top] == [
        [(one.index, one.ablation.mean) for one in top[0]]
    ] * 4
    edited = [
        edit_features(planted.model, task, planted.between, {top[0][0].index: 0.0}, controls=0)
        for task in tasks
    ]
    assert {one.effect.mean for one in edited} == {edited[0].effect.mean}
    with pytest.raises(TaskError, match="'iox' is neither a built-in task nor a file"):
        edit_features(planted.model, "iox", planted.between, {0: 0.0})


def test_a_loaded_sae_must_fit_too(planted, tiny_models):
    with pytest.raises(FeatureError, match="numbers a position"):
        sae_top_features(tiny_models.load("native"), planted.between, prompt=(1, 2, 3))


def test_without_a_difference_there_is_no_share(planted):
    pair = planted.task.pairs[0]
    task = replace(planted.task, pairs=(replace(pair, corrupted=pair.clean),), splits=(None,))
    top = sae_top_features(planted.model, planted.between, task=task, k=1)
    assert top.reconstruction.share is None
    assert edit_features(planted.model, task, planted.between, {0: 0.0}).share is None


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
        top = sae_top_features(model, sae, task=task, k=2, controls=1)
        assert top.reconstruction.variance_explained == pytest.approx(1, abs=1e-3)
        for feature in top.features:
            assert len(feature.direct.promoted) == len(feature.direct.suppressed) == 5
            assert feature.direct.promoted[0].logit >= 0 >= feature.direct.suppressed[0].logit
        same = edit_features(model, task, sae, {0: 1.0}, operation="scale", controls=1)
        assert torch.equal(same.per_pair, same.per_pair_base)


def test_direct_effects_linearise_the_final_norm(tiny_models, tmp_path):
    """Compare with a small step along the direction at the final residual stream."""
    model = tiny_models.load("native")
    sae = load_sae(
        save(
            directions_module(signed_basis(12, seed=2), "blocks.0.hook_resid_post"),
            tmp_path / "sae",
        ),
        model,
    )
    task = as_task(random_pairs((6, 6, 5)))
    tokens, last, *_ = task_tensors(task)
    top = sae_top_features(model, sae, task=task, k=2, controls=0, top_tokens=3)
    final = Site("resid_post", 1)
    stream = model.run(Batch(tokens, last), [final]).activations[final]
    for feature in top.features:
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


def test_an_sae_that_never_fires_has_no_top_features(planted):
    module = directions_module(planted.directions, "blocks.1.hook_resid_pre")
    with torch.no_grad():
        module.b_enc.fill_(-100.0)
    sae = load_sae(save(module, planted.folder / "dead"), planted.model)
    top = sae_top_features(planted.model, sae, task=planted.task)
    assert top.features == ()
    assert top.reconstruction.l0 == 0
    assert top.warnings[0].startswith("POOR RECONSTRUCTION")
    edit = edit_features(planted.model, planted.task, sae, {0: 0.0})
    assert edit.effect.mean == 0
    assert edit.control.p == 1


def test_progress_can_stop_the_work(planted):
    labels = []

    def stop(done, total, label):
        labels.append(label)
        if label == "feature ablation":
            raise Interrupted

    with pytest.raises(Interrupted):
        sae_top_features(planted.model, planted.between, task=planted.task, k=2, progress=stop)
    assert {"reconstruction", "attribution", "feature ablation"} <= set(labels)
