"""The documents of a text, their order, and the rows that are held out."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery.errors import FeatureError
from discovery.features.training import make_recipe
from discovery.features.training.text import (
    MIN_LINE_LIMIT_BYTES,
    Cursor,
    DocumentIndex,
    TrainingRows,
    resolve_text,
)
from tests.discovery.features.training.conftest import token_rows


def test_the_index_of_a_text(word_model, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(
        "the cat sees\n\n  \nfish\nthe dog sees the fish bones\nbones the", encoding="utf-8"
    )
    index = DocumentIndex.of(path, 4)
    assert index.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    encode = word_model.tokenizer.encode
    long = encode("the dog sees the fish bones")
    assert list(index.rows(word_model, [2, 0, 1, 3], 4)) == [
        [tuple(long[:4]), tuple(long[4:])],
        [tuple(encode("the cat sees"))],
        [],
        [tuple(encode("bones the"))],
    ]


@pytest.mark.parametrize("line", ["fish " * 4000, "ü" * 9000, "a" + "日本" * 4000])
def test_a_long_line_is_cut_and_nothing_is_lost(line, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(f"{line}\nend\n", encoding="utf-8")
    index = DocumentIndex.of(path, 12)
    content = path.read_bytes()
    parts = [content[start:end] for start, end in zip(index.starts, index.ends, strict=True)]
    assert b"".join(parts) == content
    assert max(map(len, parts)) <= MIN_LINE_LIMIT_BYTES
    assert "".join(part.decode("utf-8") for part in parts) == f"{line}\nend\n"
    assert len(parts) > 2


def test_json_lines(word_model, tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "the cat", "more": 1}\n{"tokens": [3, 4, 5]}\n')
    assert list(DocumentIndex.of(path, 12).rows(word_model, [0, 1], 12)) == [
        [tuple(word_model.tokenizer.encode("the cat"))],
        [(3, 4, 5)],
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"tokens": [3, 99]}', "document 1, has neither a text nor token ids from 0 to 30"),
        (b'{"tokens": [3, true]}', "has neither a text nor"),
        (b'{"words": "x"}', "has neither a text nor"),
        (b"[1, 2]", "has neither a text nor"),
        (b"{no", "document 1, is not JSON"),
        (b'{"text": "\xff"}', "document 1, is not UTF-8"),
    ],
)
def test_wrong_json_lines_are_refused(content, message, word_model, tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_bytes(content + b"\n")
    with pytest.raises(FeatureError, match=message):
        list(DocumentIndex.of(path, 12).rows(word_model, [0], 12))


def test_a_model_without_a_tokenizer_wants_token_ids(tiny_models, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat\nthe dog\n")
    with pytest.raises(FeatureError, match=r"document .* is text, and this model has no tokenizer"):
        TrainingRows(
            tiny_models.load("gpt2"),
            DocumentIndex.of(path, 12),
            make_recipe(tiny_models.load("gpt2")),
        )
    with pytest.raises(FeatureError, match="this model has no tokenizer"):
        resolve_text(tiny_models.load("gpt2"), ["the cat", "the dog"])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "has no document,"),
        ("the cat\n", "has one document,"),
        ("the\ncat\n", "have no two tokens together"),
        ("the cat\nthe cat\n", "has nothing to train on"),
    ],
)
def test_a_text_that_is_too_short(lines, message, word_model, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(lines)
    recipe = make_recipe(word_model)
    with pytest.raises(FeatureError, match=message):
        TrainingRows(word_model, DocumentIndex.of(path, 12), recipe).take(Cursor(), 10, 0)


def test_a_folder_is_not_a_text(word_model, tmp_path):
    with pytest.raises(FeatureError, match="cannot be read: Is a directory"):
        DocumentIndex.of(tmp_path, 12)


def test_tasks_and_prompts_are_not_mixed(word_model):
    task = as_task(random_pairs())
    with pytest.raises(FeatureError, match="together"):
        resolve_text(word_model, [task, (1, 2)])
    with pytest.raises(FeatureError, match="is not a prompt"):
        resolve_text(word_model, [(1, 2.5)])


def test_each_pass_has_every_document_once_and_never_what_is_held_out(tiny_models, tmp_path):
    model = tiny_models.load("gpt2")
    own = token_rows(100)
    source = resolve_text(model, own)
    rows = source.rows(model, make_recipe(model, seed=3))
    assert len(rows.heldout) == 5
    total = sum(len(row) for row in own) - sum(map(len, rows.heldout))
    first, after = rows.take(Cursor(), total, 0)
    assert after == Cursor(1, 0)
    assert Counter(first) == Counter(own) - Counter(rows.heldout)
    second, _ = rows.take(after, total, 0)
    assert Counter(second) == Counter(first)
    assert second != first
    again, _ = (
        resolve_text(model, own).rows(model, make_recipe(model, seed=3)).take(Cursor(), total, 0)
    )
    assert again == first
    piecewise, at = [], Cursor()
    while len(piecewise) < len(first):
        part, at = rows.take(at, 20, 0)
        piecewise += part
    assert piecewise[: len(first)] == first


def test_a_heldout_row_is_not_trained_on_even_if_the_text_repeats_it(word_model, tmp_path):
    path = tmp_path / "text.txt"
    rng = random.Random(0)
    path.write_text(
        "".join(
            rng.choice(["the cat sees\n", "the dog sees fish\n", "bones the fish\n"])
            for _ in range(60)
        )
    )
    rows = TrainingRows(word_model, DocumentIndex.of(path, 12), make_recipe(word_model))
    taken, _ = rows.take(Cursor(), 60, 0)
    assert taken
    assert not set(taken) & set(rows.heldout)


def test_a_missing_file_is_named(word_model):
    with pytest.raises(FeatureError, match=r"There is no file 'nowhere\.txt'"):
        DocumentIndex.of(Path("nowhere.txt"), 12)
