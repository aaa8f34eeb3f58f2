"""Max-activating examples against brute force on planted features."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from benchmarks.random_models.tiny_models import as_task, random_pairs, save_tokenizer
from discovery import feature_examples, load_model, load_task
from discovery.errors import FeatureError, Interrupted, MeasurementError
from discovery.features import load_sae
from discovery.methods.features import Sampling
from discovery.methods.features.examples.dashboards import token_texts
from tests.oracles.models.sae_features import contexts_by_brute_force
from tests.tiny_saes import directions_module, save, signed_basis

FEATURES = (3, 40, 90)
SAMPLING = Sampling(k=5, bins=3, per_bin=2, window=8, around=2)


def test_the_strongest_the_bins_and_the_density_are_those_of_brute_force(case):
    examples = feature_examples(
        case.model, case.sae, case.text, FEATURES, sampling=SAMPLING, cache=False
    )
    for dashboard, feature in zip(examples.features, FEATURES, strict=True):
        best, activations, windows = contexts_by_brute_force(case, feature, SAMPLING)
        fired = [value for value in activations if value]
        assert dashboard.feature == feature
        assert dashboard.density == pytest.approx(len(fired) / len(activations))
        assert dashboard.mean == pytest.approx(sum(fired) / len(fired), rel=1e-5, abs=1e-6)
        assert (dashboard.windows, examples.positions, dashboard.exact) == (
            windows,
            len(activations),
            True,
        )
        ranked = sorted(best.items(), key=lambda item: -item[1])
        for example, ((near, peak), value) in zip(dashboard.top, ranked, strict=False):
            assert (example.tokens, example.peak) == (near, peak)
            assert (
                example.value
                == example.activations[peak]
                == pytest.approx(value, rel=1e-5, abs=1e-6)
            )
        assert len(dashboard.top) == SAMPLING.k
        sizes = [value for _, value in ranked]
        cuts = [round(n * len(sizes) / 3) for n in range(4)]
        for n, part in enumerate(dashboard.bins):
            inside = sizes[cuts[n] : cuts[n + 1]]
            assert (part.high, part.low) == (
                pytest.approx(inside[0], rel=1e-5, abs=1e-6),
                pytest.approx(inside[-1], rel=1e-5, abs=1e-6),
            )
            assert len(part.examples) == 2
            assert all(
                part.low - 1e-6 <= example.value <= part.high + 1e-6 for example in part.examples
            )
        assert dashboard.link == f"https://neuronpedia.org/toy/1/{feature}"
    assert examples.documents == len(case.rows)


def test_a_planted_token_is_what_the_feature_shows(tmp_path, case):
    """Feature t reads token t, so its examples peak on token t."""
    sae = load_sae(
        save(
            directions_module(signed_basis(case.sae.d_in), "blocks.0.hook_resid_pre"),
            tmp_path / "sae",
        ),
        case.model,
    )
    examples = feature_examples(
        case.model, sae, case.text, range(1, 6), sampling=SAMPLING, cache=False
    )
    for dashboard in examples.features:
        shown = [*dashboard.top, *(example for part in dashboard.bins for example in part.examples)]
        assert shown
        assert {example.tokens[example.peak] for example in shown} == {dashboard.feature}
        assert all(example.value == 1 for example in shown)


def test_words_are_read_as_the_models_tokenizer_reads_them(tiny_models, tmp_path):
    folder = shutil.copytree(tiny_models.path("gpt2"), tmp_path / "model")
    save_tokenizer(folder)
    model = load_model(folder, device="cpu")
    sae = load_sae(
        save(
            directions_module(signed_basis(16, seed=1), "blocks.1.hook_resid_pre"), tmp_path / "sae"
        ),
        model,
    )
    lines = ["the cat sees the dog", "", "the fish sees the bones", "bones"]
    plain, rows = tmp_path / "text.txt", tmp_path / "rows.jsonl"
    plain.write_text("\n".join(lines))
    rows.write_text("".join(json.dumps({"said": line}) + "\n" for line in lines))
    one = feature_examples(model, sae, plain, [0, 1], cache=False)
    other = feature_examples(model, sae, rows, [0, 1], field="said", cache=False)
    listed = feature_examples(model, sae, lines, [0, 1], cache=tmp_path)
    assert one.features[0].top[0].texts is not None
    assert "«" in one.features[0].top[0].text
    assert (
        [dashboard.density for dashboard in one.features]
        == [dashboard.density for dashboard in other.features]
        == [dashboard.density for dashboard in listed.features]
    )
    assert one.documents == 3
    assert listed.fingerprint is None  # what can be read once only is not kept
    assert list(tmp_path.glob("*.json")) == []


def test_it_is_found_once_and_given_again(case, tmp_path):
    def ask(features=FEATURES, **more):
        how = Sampling(**{"k": 3, "window": 8, **more})
        return feature_examples(
            case.model, case.sae, case.text, features, sampling=how, cache=tmp_path
        )

    first = ask()
    again = ask()
    assert not first.cached
    assert again.cached
    assert (again.features, again.fingerprint, again.positions) == (
        first.features,
        first.fingerprint,
        first.positions,
    )
    assert again.cost.forward_equivalents == 0 < first.cost.forward_equivalents
    others = [ask(k=4), ask(window=9), ask(seed=1), ask(features=FEATURES[:2])]
    assert not any(examples.cached for examples in others)
    assert len({first.fingerprint, *(examples.fingerprint for examples in others)}) == 5
    path = tmp_path / f"{first.fingerprint}.json"
    for spoilt in ("{", "{}", '{"features": 3}'):
        path.write_text(spoilt)
        assert not ask().cached
        assert ask().cached
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".json"]


def test_the_same_weights_under_another_card_are_another_question(case, tmp_path):
    """SAEs with the same weights may have other links and warnings."""
    for name in ("toy/1", "toy/2"):
        module = directions_module(case.directions, "blocks.1.hook_resid_pre", neuronpedia_id=name)
        sae = load_sae(save(module, tmp_path / name), case.model)
        examples = feature_examples(
            case.model, sae, case.text, [3], sampling=SAMPLING, cache=tmp_path / "cache"
        )
        assert (examples.features[0].link, examples.cached) == (
            f"https://neuronpedia.org/{name}/3",
            False,
        )


def test_another_text_is_another_question(case, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text(case.text.read_text())
    first = feature_examples(case.model, case.sae, text, [3], sampling=SAMPLING, cache=tmp_path)
    assert (
        first.fingerprint
        == feature_examples(
            case.model, case.sae, case.text, [3], sampling=SAMPLING, cache=tmp_path
        ).fingerprint
    )
    with text.open("a") as file:
        file.write('{"tokens": [1, 2, 3]}\n')
    assert not feature_examples(
        case.model, case.sae, text, [3], sampling=SAMPLING, cache=tmp_path
    ).cached


def test_it_tells_how_far_it_is_and_leaves_nothing_when_stopped(case, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "discovery.methods.features.examples.reader.tokens_per_batch", lambda device: 64
    )
    reports = []

    def stop(done, total, label):
        reports.append((done, total, label))
        if len(reports) == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        feature_examples(
            case.model, case.sae, case.text, [3], sampling=SAMPLING, cache=tmp_path, progress=stop
        )
    assert list(tmp_path.iterdir()) == []
    assert [done for done, _, _ in reports] == sorted(done for done, _, _ in reports)
    whole = []
    examples = feature_examples(
        case.model,
        case.sae,
        case.text,
        [3],
        sampling=SAMPLING,
        cache=False,
        progress=lambda *row: whole.append(row),
    )
    assert (
        whole[-1][0]
        == pytest.approx(whole[-1][1])
        == pytest.approx(examples.cost.forward_equivalents)
    )
    assert all(0 < done <= total for done, total, _ in whole)


def test_reading_ends_where_it_is_told_to(case):
    how = Sampling(k=2, window=8, most=30)
    examples = feature_examples(case.model, case.sae, case.text, [3], sampling=how, cache=False)
    assert examples.positions == 30
    assert any("30 positions" in warning for warning in examples.warnings)


def test_a_task_gives_both_sides_of_its_pairs(case):
    def within(pair):
        return replace(
            pair,
            **{
                side: tuple(token % 25 for token in getattr(pair, side))
                for side in ("clean", "corrupted")
            },
        )

    task = as_task(tuple(map(within, random_pairs((6, 6, 5)))))
    examples = feature_examples(case.model, case.sae, task, [3], cache=False)
    assert (examples.documents, examples.windows) == (6, 6)
    assert examples.positions == 2 * (5 + 5 + 4)


def test_a_name_of_a_built_in_task_is_a_text() -> None:
    """In the bundled model, whose dictionary is used if none is named."""
    model = load_model("bundled", device="cpu")
    named, loaded = (
        feature_examples(model, None, text, [60], cache=False)
        for text in ("ioi", load_task("ioi", model))
    )
    assert (named.text, named.documents, named.sae) == ("ioi", 480, "bundled")
    assert named.features == loaded.features


def test_contexts_read_as_the_text_does() -> None:
    """A token alone may lose the space in front of it."""
    tokenizer = load_model("bundled").tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode("When Mary and John went to the store, John gave a drink to Mary.")
    read = token_texts(tokenizer, ids)
    assert len(read) == len(ids)
    assert "".join(read) == tokenizer.decode(ids)
    assert " Mary" in read[1:]


def test_bad_input(case):
    for absent in (10_000, -1, 1.5, "3", True):
        with pytest.raises(FeatureError, match=f"Feature {absent!r} does not exist"):
            feature_examples(case.model, case.sae, case.text, [absent])
    for features, message in (([], "0 features"), (3, "features is 3"), ("3", "features is '3'")):
        with pytest.raises(MeasurementError, match=message):
            feature_examples(case.model, case.sae, case.text, features)
    for text, message in (
        (None, "The text is None"),
        (5, "The text is 5"),
        ([1, 2], "1 is not a prompt"),
    ):
        with pytest.raises(MeasurementError, match=message):
            feature_examples(case.model, case.sae, text, [3], cache=False)
    with pytest.raises(MeasurementError, match="no text file"):
        feature_examples(case.model, case.sae, case.folder / "nothing.txt", [3])
