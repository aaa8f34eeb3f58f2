"""The documents of files and tasks, and texts that cannot be read."""

from __future__ import annotations

import json

import pytest

from discovery import feature_examples
from discovery.errors import MeasurementError
from discovery.methods.features.examples.documents import DocumentStream


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
    documents = list(DocumentStream.of(long))
    assert "".join(document.prompt for document in documents if document.number == 1) == written
    assert documents[-1].prompt == "short"
    assert documents[-1].share_read == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"words": "a"}\n', "under 'text'; it has words"),
        ("[1, 2]\n", "under 'text'"),
        ("{\n", "line 1, is not JSON"),
        ('{"text": 3}\n', "under 'text'"),
        ('{"tokens": [1, 99]}\n', "the token 99"),
        ('{"text": "word"}\n', "no tokenizer"),
        ("\n", "no position to look at"),
        (b"\xff\xfe\n", "not UTF-8"),
    ],
)
def test_texts_that_cannot_be_read(case, tmp_path, content, message):
    text = tmp_path / "text.jsonl"
    text.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(MeasurementError, match=message):
        feature_examples(case.model, case.sae, text, [3], cache=False)
