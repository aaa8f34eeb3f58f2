"""SAE directories, and the bundled SAE, which fits the bundled model and no other."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from discovery import load_model, sae_top_features
from discovery.errors import FeatureError
from discovery.features import load_sae
from discovery.features.directory import (
    bundled_directory,
    copy_sae,
    find_directory,
    read_info,
    short_name,
)
from discovery.features.training.scores import score_sae
from discovery.sites import Site
from discovery.store import ModelSource, create_run
from tests.tiny_saes import random_module, save
from training.corpus import sentences

MAX_BYTES = 6_000_000


@pytest.fixture(scope="module")
def model():
    return load_model("bundled", device="cpu")


def test_it_is_small_and_says_what_it_is():
    files = [path for path in bundled_directory().iterdir() if path.is_file()]
    assert {path.name for path in files} == {
        "cfg.json",
        "sae_weights.safetensors",
        "training.json",
        "SAE_CARD.md",
    }
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    info = read_info("bundled")
    assert (info.architecture, info.hook, info.d_in, info.model) == (
        "topk",
        "blocks.2.hook_resid_pre",
        128,
        "bundled",
    )
    assert info.scores is not None
    assert info.scores["variance_explained"] > 0.95
    assert info.scores["loss_recovered"] > 0.99
    card = (bundled_directory() / "SAE_CARD.md").read_text(encoding="utf-8")
    assert f"{info.scores['variance_explained']:.3f}" in card
    assert info.fingerprint in card
    record = json.loads((bundled_directory() / "training.json").read_text(encoding="utf-8"))
    assert record["scores"] == info.scores
    assert record["recipe"] == info.recipe


def test_its_scores_are_measured_again_on_other_sentences(model):
    rows = [tuple(model.tokenizer.encode(sentence)) for sentence in islice(sentences(99), 120)]
    scores = score_sae(model, Site("resid_pre", 2), rows, 0, load_sae("bundled", model).codes)
    recorded = read_info("bundled").scores
    assert recorded is not None
    assert scores.l0 == pytest.approx(16, abs=0.5)
    assert scores.variance_explained == pytest.approx(recorded["variance_explained"], abs=0.02)
    assert scores.loss_recovered == pytest.approx(recorded["loss_recovered"], abs=0.01)


def test_the_demo_needs_no_argument(model):
    top = sae_top_features(model, task="ioi", positions=["end"], k=3, controls=2)
    assert (top.sae, top.n_pairs, top.reads) == ("bundled", 32, Site("resid_pre", 2))
    assert top.warnings == ()
    assert top.reconstruction.share.mean == pytest.approx(1, abs=0.1)
    first = top.features[0]
    assert first.ablation.low > 2, "a large part of the metric"
    assert (first.consistency.clean.share, first.consistency.unrelated.share) == (1.0, 0.0)


def test_another_model_is_refused_with_the_reason(tiny_models):
    with pytest.raises(
        FeatureError,
        match=r"of the bundled model, and does not belong to .*: it was trained on other weights",
    ) as fault:
        sae_top_features(tiny_models.load("gpt2"), prompt=[1, 2, 3])
    assert "train_sae" in fault.value.cure


def test_info_of_any_directory(tmp_path):
    folder = save(
        random_module("standard", 12, 20, "blocks.0.hook_resid_post"), tmp_path / "saes" / "one"
    )
    info = read_info(folder)
    assert (info.architecture, info.features, info.hook, info.recipe, info.scores) == (
        "standard",
        20,
        "blocks.0.hook_resid_post",
        None,
        None,
    )
    copy_sae(folder, tmp_path / "two")
    assert read_info(tmp_path / "two").bytes == info.bytes
    with pytest.raises(FeatureError, match=r"has no cfg.json and no sae_weights.safetensors"):
        read_info(tmp_path)
    with pytest.raises(
        FeatureError, match="There is no SAE 'nowhere', neither here nor among the runs in"
    ) as fault:
        read_info("nowhere")
    assert "the id of a finished training" in fault.value.cure


def test_a_run_without_an_sae_says_why(tmp_path):
    with (
        create_run(tmp_path, "ioi", ModelSource(), {}) as discovery,
        create_run(tmp_path, "sae-x", ModelSource(), {}, kind="sae") as training,
    ):
        with pytest.raises(
            FeatureError, match=f"The training {training.id} is running, and has no SAE yet"
        ):
            find_directory(training.id, tmp_path)
        training.update(status="interrupted")
        for source in (training.id, training.path):
            with pytest.raises(FeatureError, match="is interrupted, and has no SAE yet") as fault:
                find_directory(source, tmp_path)
            assert f"sae train --resume {training.id}" in fault.value.cure
            assert f"train_sae(run_id='{training.id}')" in fault.value.cure
        training.update(status="completed")
        with pytest.raises(FeatureError, match="has lost its SAE"):
            find_directory(training.id, tmp_path)
        with pytest.raises(
            FeatureError, match=f"The run {discovery.id} is not a training of an SAE"
        ):
            find_directory(discovery.id, tmp_path)
    assert find_directory("sae-y", tmp_path) is None


def test_the_name_of_an_sae_in_a_record(tmp_path):
    (tmp_path / "run-1" / "sae").mkdir(parents=True)
    assert short_name(str(tmp_path / "run-1" / "sae")) == "sae"
    (tmp_path / "run-1" / "run.json").write_text("{}")
    assert (
        short_name(str(tmp_path / "run-1" / "sae"))
        == short_name(str(tmp_path / "run-1"))
        == "run-1"
    )
    assert short_name("release/layer8") == "release/layer8"
