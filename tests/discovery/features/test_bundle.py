"""The dictionary that comes with the bundled model: it fits that model and no other, and answers without a download."""

from __future__ import annotations

import json

import pytest

from discovery import load_model, sae_top_features
from discovery.errors import FeatureError
from discovery.features import load_sae
from discovery.features.bundle import bundled_directory, copy_dictionary, facts
from discovery.features.training.scores import measure
from discovery.sites import Site
from tests.discovery.features.planted import random_module, save

MOST_BYTES = 6_000_000


@pytest.fixture(scope="module")
def model():
    return load_model("bundled", device="cpu")


def test_it_is_small_and_says_what_it_is():
    files = [path for path in bundled_directory().iterdir() if path.is_file()]
    assert {path.name for path in files} == {"cfg.json", "sae_weights.safetensors", "training.json", "SAE_CARD.md"}
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    found = facts("bundled")
    assert (found.architecture, found.hook, found.d_in, found.model) == ("topk", "blocks.2.hook_resid_pre", 128, "bundled")
    assert found.scores is not None
    assert found.scores["variance_explained"] > 0.95
    assert found.scores["loss_recovered"] > 0.99
    card = (bundled_directory() / "SAE_CARD.md").read_text(encoding="utf-8")
    assert f"{found.scores['variance_explained']:.3f}" in card
    assert found.fingerprint in card
    record = json.loads((bundled_directory() / "training.json").read_text(encoding="utf-8"))
    assert record["scores"] == found.scores
    assert record["recipe"] == found.recipe


def test_its_scores_are_measured_again_on_other_sentences(model):
    from itertools import islice

    from training.corpus import sentences

    rows = [tuple(model.tokenizer.encode(sentence)) for sentence in islice(sentences(99), 120)]
    found, told = measure(model, Site("resid_pre", 2), rows, 0, load_sae("bundled", model).codes), facts("bundled").scores
    assert told is not None
    assert found.l0 == pytest.approx(16, abs=0.5)
    assert found.variance_explained == pytest.approx(told["variance_explained"], abs=0.02)
    assert found.loss_recovered == pytest.approx(told["loss_recovered"], abs=0.01)


def test_the_demo_needs_no_argument(model):
    found = sae_top_features(model, task="ioi", positions=["end"], k=3, controls=2)
    assert (found.sae, found.n_pairs, found.reads) == ("bundled", 32, Site("resid_pre", 2))
    assert found.warnings == ()
    assert found.reconstruction.share.mean == pytest.approx(1, abs=0.1)
    first = found.features[0]
    assert first.ablation.low > 2, "a large part of the metric"
    assert (first.consistency.clean.share, first.consistency.unrelated.share) == (1.0, 0.0)


def test_another_model_is_refused_with_the_reason(shelf):
    with pytest.raises(FeatureError, match=r"of the bundled model, and does not belong to .*: it was trained on other weights") as fault:
        sae_top_features(shelf.load("gpt2"), prompt=[1, 2, 3])
    assert "train_sae" in fault.value.cure


def test_facts_of_any_directory(tmp_path):
    folder = save(random_module("standard", 12, 20, "blocks.0.hook_resid_post"), tmp_path / "saes" / "one")
    found = facts(folder)
    assert (found.architecture, found.features, found.hook, found.recipe, found.scores) == (
        "standard",
        20,
        "blocks.0.hook_resid_post",
        None,
        None,
    )
    copy_dictionary(folder, tmp_path / "two")
    assert facts(tmp_path / "two").bytes == found.bytes
    with pytest.raises(FeatureError, match=r"is no dictionary: it has no cfg.json"):
        facts(tmp_path)
