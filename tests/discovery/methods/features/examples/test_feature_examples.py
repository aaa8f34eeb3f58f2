"""Max-activating examples against brute force on planted features: everything computed at once, nothing streamed."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.known_circuits.hand_built import build_known_circuit
from benchmarks.random_models.tiny_models import as_task, random_pairs, save_tokenizer
from discovery import feature_examples, load_model, load_task
from discovery.backends.base import Batch
from discovery.errors import FeatureError, Interrupted, MeasurementError
from discovery.features import load_sae
from discovery.methods.features import Sampling
from discovery.methods.features.examples.documents import DocumentStream
from discovery.methods.features.examples.sampling import ContextCollector, PeakContext, context_key
from discovery.sites import Site
from tests.tiny_saes import directions_module, save, signed_basis

FEATURES = (3, 40, 90)
HOW = Sampling(k=5, bins=3, per_bin=2, window=8, around=2)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """The induction model (token ids only), a dictionary of random directions between its layers, and a text of ids."""
    folder = tmp_path_factory.mktemp("examples")
    case = build_known_circuit("induction")
    model = load_model(case.save(folder / "model"), device="cpu")
    directions = signed_basis(case.layout.d_model, seed=5)
    sae = load_sae(
        save(
            directions_module(directions, "blocks.1.hook_resid_pre", neuronpedia_id="toy/1"),
            folder / "sae",
        ),
        model,
    )
    rng = random.Random(0)
    rows = [[rng.randrange(25) for _ in range(rng.randint(1, 20))] for _ in range(60)]
    rows += [rows[3], rows[3], rows[7]]  # said again: no new context
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"tokens": row}) + "\n" for row in rows))
    return SimpleNamespace(
        model=model, sae=sae, rows=rows, text=text, directions=directions, folder=folder
    )


def contexts_by_brute_force(case, feature, how):
    """Every context with its largest activation: key -> (value, tokens); and every activation that counts."""
    best, every, windows = defaultdict(float), [], 0
    site = Site("resid_pre", 1)
    for row in case.rows:
        for first in range(0, len(row), how.window):
            part = row[first : first + how.window]
            stream = case.model.run(Batch(torch.tensor([part]), stop=2), [site]).activations[site][
                0
            ]
            z = (stream @ case.directions[feature]).relu()[how.skip :].tolist()
            every += z
            if not any(z):
                continue
            windows += 1
            peak = z.index(max(z)) + how.skip
            begin = max(0, peak - how.around)
            near = tuple(part[begin : peak + how.around + 1])
            best[near, peak - begin] = max(best[near, peak - begin], max(z))
    return best, every, windows


def test_the_strongest_the_bins_and_the_density_are_those_of_brute_force(case):
    found = feature_examples(case.model, case.sae, case.text, FEATURES, sampling=HOW, cache=False)
    for card, feature in zip(found.features, FEATURES, strict=True):
        best, every, windows = contexts_by_brute_force(case, feature, HOW)
        fired = [value for value in every if value]
        assert card.feature == feature
        assert card.density == pytest.approx(len(fired) / len(every))
        assert card.mean == pytest.approx(sum(fired) / len(fired), rel=1e-5)
        assert (card.windows, found.positions, card.exact) == (windows, len(every), True)
        ranked = sorted(best.items(), key=lambda item: -item[1])
        for example, ((near, peak), value) in zip(card.top, ranked, strict=False):
            assert (example.tokens, example.peak) == (near, peak)
            assert example.value == example.activations[peak] == pytest.approx(value, rel=1e-5)
        assert len(card.top) == HOW.k
        sizes = [value for _, value in ranked]
        cuts = [round(n * len(sizes) / 3) for n in range(4)]
        for n, part in enumerate(card.bins):
            inside = sizes[cuts[n] : cuts[n + 1]]
            assert (part.high, part.low) == (
                pytest.approx(inside[0], rel=1e-5),
                pytest.approx(inside[-1], rel=1e-5),
            )
            assert len(part.examples) == 2
            assert all(
                part.low - 1e-6 <= example.value <= part.high + 1e-6 for example in part.examples
            )
        assert card.link == f"https://neuronpedia.org/toy/1/{feature}"
    assert found.documents == len(case.rows)


def test_a_planted_token_is_what_the_feature_shows(tmp_path, case):
    """The dictionary's first directions are the tokens' own: whatever is read, the examples of feature t peak on token t."""
    sae = load_sae(
        save(
            directions_module(signed_basis(case.sae.d_in), "blocks.0.hook_resid_pre"),
            tmp_path / "sae",
        ),
        case.model,
    )
    found = feature_examples(case.model, sae, case.text, range(1, 6), sampling=HOW, cache=False)
    for card in found.features:
        shown = [*card.top, *(example for part in card.bins for example in part.examples)]
        assert shown
        assert {example.tokens[example.peak] for example in shown} == {card.feature}
        assert all(example.value == 1 for example in shown)


def test_what_is_kept_does_not_grow_with_the_text_nor_hang_on_its_order():
    contexts = [
        PeakContext(n, (n % 400, 1), (float((n * 7919) % 400), 0.0), 0) for n in range(1500)
    ]
    wanted = sorted({context.value for context in contexts}, reverse=True)[:5]
    samples = []
    for seed in (1, 2):
        kept = ContextCollector(5, 50)
        for context in random.Random(seed).sample(contexts, len(contexts)):
            kept.offer(
                context_key(context.tokens, 0, 0), context.value, lambda context=context: context
            )
            assert len(kept.strongest()) <= 5
            assert len(kept.even_sample()) <= 50
        assert [context.value for context in kept.strongest()] == wanted
        assert (kept.n_offered, kept.has_overflowed) == (1500, True)
        samples.append([context.tokens for context in kept.even_sample()])
    assert samples[0] == samples[1]
    values = [context[0] for context in samples[0]]
    assert 120 < sum(values) / len(values) < 280  # of 0 to 399, evenly


def test_words_are_read_as_the_models_tokenizer_reads_them(tiny_models, tmp_path):
    folder = tiny_models.path("gpt2")
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
    given = feature_examples(model, sae, lines, [0, 1], cache=tmp_path)
    assert one.features[0].top[0].texts is not None
    assert "«" in one.features[0].top[0].text
    assert (
        [card.density for card in one.features]
        == [card.density for card in other.features]
        == [card.density for card in given.features]
    )
    assert one.documents == 3
    assert given.fingerprint is None  # what can be read once only is not kept
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
    assert not any(found.cached for found in others)
    assert len({first.fingerprint, *(found.fingerprint for found in others)}) == 5
    kept = tmp_path / f"{first.fingerprint}.json"
    for spoilt in ("{", "{}", '{"features": 3}'):
        kept.write_text(spoilt)
        assert not ask().cached
        assert ask().cached
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".json"]


def test_the_same_weights_under_another_card_are_another_question(case, tmp_path):
    """The link and what is doubtful are the dictionary's own, and no other's that has its weights."""
    for name in ("toy/1", "toy/2"):
        module = directions_module(case.directions, "blocks.1.hook_resid_pre", neuronpedia_id=name)
        sae = load_sae(save(module, tmp_path / name), case.model)
        found = feature_examples(
            case.model, sae, case.text, [3], sampling=HOW, cache=tmp_path / "cache"
        )
        assert (found.features[0].link, found.cached) == (
            f"https://neuronpedia.org/{name}/3",
            False,
        )


def test_another_text_is_another_question(case, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text(case.text.read_text())
    first = feature_examples(case.model, case.sae, text, [3], sampling=HOW, cache=tmp_path)
    assert (
        first.fingerprint
        == feature_examples(
            case.model, case.sae, case.text, [3], sampling=HOW, cache=tmp_path
        ).fingerprint
    )
    with text.open("a") as file:
        file.write('{"tokens": [1, 2, 3]}\n')
    assert not feature_examples(
        case.model, case.sae, text, [3], sampling=HOW, cache=tmp_path
    ).cached


def test_it_tells_how_far_it_is_and_leaves_nothing_when_stopped(case, tmp_path, monkeypatch):
    monkeypatch.setattr("discovery.methods.features.examples.reader.TOKENS_PER_BATCH", {"cpu": 64})
    told = []

    def stop(done, total, label):
        told.append((done, total, label))
        if len(told) == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        feature_examples(
            case.model, case.sae, case.text, [3], sampling=HOW, cache=tmp_path, progress=stop
        )
    assert list(tmp_path.iterdir()) == []
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    whole = []
    found = feature_examples(
        case.model,
        case.sae,
        case.text,
        [3],
        sampling=HOW,
        cache=False,
        progress=lambda *row: whole.append(row),
    )
    assert (
        whole[-1][0] == pytest.approx(whole[-1][1]) == pytest.approx(found.cost.forward_equivalents)
    )
    assert all(0 < done <= total for done, total, _ in whole)


def test_reading_ends_where_it_is_told_to(case):
    how = Sampling(k=2, window=8, most=30)
    found = feature_examples(case.model, case.sae, case.text, [3], sampling=how, cache=False)
    assert found.positions == 30
    assert any("30 positions" in warning for warning in found.warnings)


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
    found = feature_examples(case.model, case.sae, task, [3], cache=False)
    assert (found.documents, found.windows) == (6, 6)
    assert found.positions == 2 * (5 + 5 + 4)


def test_a_name_of_a_built_in_task_is_a_text() -> None:
    """In the bundled model, whose dictionary is used if none is named."""
    model = load_model("bundled", device="cpu")
    named, loaded = (
        feature_examples(model, None, text, [60], cache=False)
        for text in ("ioi", load_task("ioi", model))
    )
    assert (named.text, named.documents, named.sae) == ("ioi", 480, "bundled")
    assert named.features == loaded.features


def test_a_task_file_and_long_lines_are_texts_too(tmp_path, monkeypatch):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        json.dumps({"clean": "a b", "corrupted": "a c", "answer": " d", "wrong": " e"}) + "\n\n"
    )
    assert [document.prompt for document in DocumentStream.of(pairs)] == ["a b", "a c"]
    monkeypatch.setattr("discovery.methods.features.examples.documents.MAX_LINE_BYTES", 7)
    long = tmp_path / "long.txt"
    written = "äöü€ and 𝄞 much more, on one line"
    long.write_text(f"{written}\nshort\n", encoding="utf-8")
    read = list(DocumentStream.of(long))
    assert "".join(document.prompt for document in read if document.number == 1) == written
    assert read[-1].prompt == "short"
    assert read[-1].read == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"words": "a"}\n', "under 'text'; it has words"),
        ("[1, 2]\n", "under 'text'"),
        ("{\n", "line 1, is no JSON"),
        ('{"text": 3}\n', "under 'text'"),
        ('{"tokens": [1, 99]}\n', "the token 99"),
        ('{"text": "word"}\n', "no tokenizer"),
        ("\n", "no position to look at"),
        (b"\xff\xfe\n", "not UTF-8"),
    ],
)
def test_texts_that_cannot_be_read(case, tmp_path, content, said):
    text = tmp_path / "text.jsonl"
    text.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(MeasurementError, match=said):
        feature_examples(case.model, case.sae, text, [3], cache=False)


def test_bad_input(case):
    for settings, said in (
        ({"k": 0}, "k is 0"),
        ({"window": 4, "skip": 4}, "skip is 4"),
        ({"most": 1.5}, "most is 1.5"),
        ({"seed": "a"}, "seed is 'a'"),
    ):
        with pytest.raises(MeasurementError, match=said):
            Sampling(**settings)
    for absent in (10_000, -1, 1.5, "3", True):
        with pytest.raises(FeatureError, match=f"Feature {absent!r} does not exist"):
            feature_examples(case.model, case.sae, case.text, [absent])
    for features, said in (([], "0 features"), (3, "features is 3"), ("3", "features is '3'")):
        with pytest.raises(MeasurementError, match=said):
            feature_examples(case.model, case.sae, case.text, features)
    for text, said in (
        (None, "The text is None"),
        (5, "The text is 5"),
        ([1, 2], "1 is no prompt"),
    ):
        with pytest.raises(MeasurementError, match=said):
            feature_examples(case.model, case.sae, text, [3], cache=False)
    with pytest.raises(MeasurementError, match="no text file"):
        feature_examples(case.model, case.sae, case.folder / "nothing.txt", [3])


def test_contexts_read_as_the_text_does() -> None:
    """A token alone may lose the space in front of it."""
    from discovery import load_model
    from discovery.methods.features.examples.dashboards import token_texts

    tokenizer = load_model("bundled").tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode("When Mary and John went to the store, John gave a drink to Mary.")
    read = token_texts(tokenizer, ids)
    assert len(read) == len(ids)
    assert "".join(read) == tokenizer.decode(ids)
    assert " Mary" in read[1:]
