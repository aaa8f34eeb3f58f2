"""Task files: valid ones are read, and every error names its line and a fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from discovery.errors import TaskError
from discovery.tasks import load_task
from discovery.tasks.pairs import PromptPair
from discovery.tasks.task_file import MAX_FILE_BYTES, read_task_file
from tests.discovery.tasks.stand_ins import FakeModel, ToyTokenizer

TEXT = {"clean": "the cat sees", "corrupted": "the dog sees", "answer": " fish", "wrong": " bones"}
IDS = {"clean": [1, 2, 3], "corrupted": [1, 5, 3], "answer": 4, "wrong": 6}


def write_task(folder: Path, *lines: Any) -> Path:
    path = folder / "animals.jsonl"
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines),
        encoding="utf-8",
    )
    return path


def error_from(source: Any, model: Any = None) -> TaskError:
    """Load a task that must be refused, and return the error."""
    with pytest.raises(TaskError) as caught:
        load_task(source, FakeModel() if model is None else model)
    fault = caught.value
    assert fault.cause.strip()
    assert fault.cure.strip()
    assert "\n" not in fault.cause + fault.cure
    return fault


def test_text_is_tokenised_as_the_tokenizer_does(tmp_path):
    model = FakeModel(ToyTokenizer(bos=True))
    task = load_task(write_task(tmp_path, TEXT), model)
    (pair,) = task.pairs
    assert task.name == "animals"
    assert pair.clean == tuple(model.tokenizer.encode("the cat sees"))
    assert pair.clean[0] == 0
    assert model.tokenizer.decode(list(pair.answer)) == " fish"
    assert model.tokenizer.decode(list(pair.wrong)) == " bones"
    assert (pair.template, dict(pair.labels)) == ("", {})


def test_ids_are_used_exactly_as_given(tmp_path):
    (pair,) = load_task(
        write_task(tmp_path, IDS | {"template": "x", "labels": {"animal": 1, "end": -1}}),
        FakeModel(tokenizer=None),
    ).pairs
    assert (pair.clean, pair.corrupted, pair.answer, pair.wrong) == (
        (1, 2, 3),
        (1, 5, 3),
        (4,),
        (6,),
    )
    assert pair.template == "x"
    assert dict(pair.labels) == {"animal": 1, "end": 2}


def test_answers_may_be_sets_of_texts_and_ids(tmp_path):
    tokenizer = ToyTokenizer()
    (pair,) = load_task(
        write_task(tmp_path, TEXT | {"answer": [" fish", 77], "wrong": [" bones", " sticks"]}),
        FakeModel(tokenizer),
    ).pairs
    assert pair.answer == (*tokenizer.encode(" fish"), 77)
    assert pair.wrong == (*tokenizer.encode(" bones"), *tokenizer.encode(" sticks"))


def test_reference_lines_are_no_pairs(tmp_path):
    """They need a corrupted prompt alone; the fields of a pair may be there and are not used."""
    pairs = [TEXT | {"clean": f"a{n} cat sees", "corrupted": f"a{n} dog sees"} for n in range(4)]
    lines = [
        {"corrupted": "one cow sees", "use": "reference"},
        {"corrupted": [5, 6], "template": "x", "labels": {"end": -1}, "use": "reference"},
        TEXT | {"use": "reference"},
    ]
    task = load_task(write_task(tmp_path, *pairs, *lines), FakeModel())
    assert len(task) == 4
    source = task.reference_source
    assert source.builtin is None
    prompts = {prompt.tokens: prompt for prompt in source.draw(0)}
    assert len(prompts) == 7
    assert {pair.corrupted for pair in task.pairs} < set(prompts)
    assert (prompts[5, 6].template, dict(prompts[5, 6].labels)) == ("x", {"end": 1})
    assert "both splits" in source.description
    assert "3 reference lines" in source.description
    assert task.discovery.reference_source is source
    assert load_task([*pairs, *lines], FakeModel()).reference_source.draw(0) != ()


def test_a_sample_of_the_pairs_keeps_all_reference_lines():
    pairs = [IDS | {"corrupted": [1, n, 3]} for n in range(10, 20)]
    lines = [{"corrupted": [1, n, 3], "use": "reference"} for n in range(20, 30)]
    task = load_task([*pairs, *lines], FakeModel(), pairs=4)
    assert len(task.reference_source.draw(0)) == 4 + 10


def test_reference_lines_alone_are_no_task(tmp_path):
    fault = error_from(write_task(tmp_path, {"corrupted": "the dog", "use": "reference"}))
    assert fault.cause == "The task 'animals' has reference lines and no pairs."


def test_a_reference_line_written_twice(tmp_path):
    line = {"corrupted": "one cow sees", "use": "reference"}
    fault = error_from(write_task(tmp_path, TEXT, line, line, line))
    assert fault.cause == "line 3 repeats line 2. (1 more reference lines have faults.)"


def test_empty_lines_windows_line_ends_and_a_byte_order_mark_are_ignored(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(TEXT).encode() + b"\r\n\r\n \r\n" + json.dumps(IDS).encode()
    )
    assert list(read_task_file(path)) == ["line 1", "line 4"]


def test_a_line_separator_within_a_text_ends_no_line(tmp_path):
    unusual = {**TEXT, "clean": "the\u2028cat sees", "corrupted": "the\u0085dog sees"}
    (pair,) = read_task_file(write_task(tmp_path, json.dumps(unusual, ensure_ascii=False))).values()
    assert pair.clean == unusual["clean"]
    assert pair.corrupted == unusual["corrupted"]


def test_inline_pairs_are_fields_or_values():
    value = PromptPair(clean=(1, 2, 3), corrupted=(1, 5, 3), answer=4, wrong=6)
    assert load_task([value], FakeModel()).pairs == load_task([IDS], FakeModel()).pairs
    assert load_task([value], FakeModel()).name == "inline"


LINES = {
    "not JSON": ("{clean: 1}", "not JSON"),
    "a number that is too long": ('{"clean": ' + "9" * 5000 + "}", "not JSON"),
    "nested too deeply": ("[" * 100_000, "not JSON"),
    "not an object": ("[1, 2]", "a list, not an object"),
    "a field missing": (
        {k: v for k, v in TEXT.items() if k != "wrong"},
        "the field 'wrong' is missing",
    ),
    "a field unknown": (TEXT | {"answers": " fish"}, "unknown field 'answers'"),
    "a use that is unknown": (TEXT | {"use": "means"}, "use is 'means'"),
    "a use that is null": (TEXT | {"use": None}, "use is None"),
    "a reference line without its prompt": (
        {"clean": "a cat", "use": "reference"},
        "the field 'corrupted' is missing",
    ),
    "a reference line with a field unknown": (
        {"corrupted": "a cat", "use": "reference", "weight": 2},
        "unknown field 'weight'",
    ),
    "a reference line with a malformed answer": (
        TEXT | {"answer": None, "use": "reference"},
        "None is not an answer",
    ),
    "a reference line beyond the context": (
        {"corrupted": list(range(21)), "use": "reference"},
        "21 tokens, and this model takes 20",
    ),
    "a reference line with a label after the end": (
        {"corrupted": [1, 2], "labels": {"S": 2}, "use": "reference"},
        "label 'S' is at 2, and the prompt has 2 tokens",
    ),
    "a reference line that repeats a pair's corrupted prompt": (
        {"corrupted": "a dog sees", "use": "reference"},
        "repeats the corrupted prompt of a pair",
    ),
    "a prompt that is a number": (TEXT | {"clean": 5}, "5 is not a prompt"),
    "a prompt of texts": (TEXT | {"clean": ["the", "cat"]}, "is not a prompt"),
    "a prompt of booleans": (TEXT | {"clean": [True, False]}, "is not a prompt"),
    "half a character": (
        '{"clean": "\\ud800", "corrupted": "a", "answer": "b", "wrong": "c"}',
        "is not a prompt",
    ),
    "an answer that is null": (TEXT | {"answer": None}, "None is not an answer"),
    "an answer of half a character": (
        '{"clean": "a", "corrupted": "b", "answer": "\\udfff", "wrong": "c"}',
        "is not an answer",
    ),
    "an answer nested": (TEXT | {"wrong": [[1]]}, "is not an answer"),
    "a template that is a number": (TEXT | {"template": 3}, "template is 3"),
    "labels that are a list": (TEXT | {"labels": []}, "labels is []"),
    "a template with a long name": (TEXT | {"template": "x" * 101}, "the template 'xxxxxxxxxx"),
    "a label with a long name": (TEXT | {"labels": {"x" * 20_000: 1}}, "is 20000 characters long"),
    "a label that is a text": (TEXT | {"labels": {"end": "last"}}, "labels is"),
    "a label that is a fraction": (TEXT | {"labels": {"end": 1.0}}, "labels is"),
    "sides of different length": (
        TEXT | {"corrupted": "the brown dog sees"},
        "clean has 3 tokens and corrupted 4",
    ),
    "sides that are the same": (
        TEXT | {"corrupted": TEXT["clean"]},
        "clean and corrupted are the same",
    ),
    "an answer of two tokens": (
        TEXT | {"answer": " mackerels"},
        "does not continue the prompt by exactly one token",
    ),
    "an answer without its space": (
        TEXT | {"wrong": "fish"},
        "does not continue the prompt by exactly one token",
    ),
    "an answer without tokens": (
        TEXT | {"answer": ""},
        "does not continue the prompt by exactly one token",
    ),
    "one token on both sides": (TEXT | {"wrong": " fish"}, "is both answer and wrong"),
    "sets that share a token": (
        TEXT | {"answer": [" fish", " mice"], "wrong": [" bones", " mice"]},
        "is both answer and wrong",
    ),
    "a set with one token twice": (
        TEXT | {"answer": [" fish", " fish"]},
        "two members of the set are the same token",
    ),
    "an empty set": (TEXT | {"answer": []}, "the set is empty"),
    "an empty prompt of ids": (IDS | {"clean": [], "corrupted": []}, "the prompt has no tokens"),
    "an empty prompt of text": (TEXT | {"clean": ""}, "the prompt has no tokens"),
    "a token that does not exist": (IDS | {"clean": [1, 1000, 3]}, "token id 1000 does not exist"),
    "a token below zero": (IDS | {"corrupted": [1, -1, 3]}, "token id -1 does not exist"),
    "an answer that does not exist": (IDS | {"answer": 1000}, "token id 1000 does not exist"),
    "text after ids": (IDS | {"answer": " fish"}, "is text after a prompt of token ids"),
    "a prompt beyond the context": (
        IDS | {"clean": list(range(21)), "corrupted": list(range(1, 22))},
        "21 tokens, and this model takes 20",
    ),
    "a label after the end": (
        IDS | {"labels": {"S": 3}},
        "label 'S' is at 3, and the prompt has 3 tokens",
    ),
    "an answer that is not known": (
        TEXT | {"answer": " Xyzzy"},
        "the tokenizer does not know ' Xyzzy'",
    ),
    "a label before the beginning": (
        IDS | {"labels": {"S": -4}},
        "label 'S' is at -4, and the prompt has 3 tokens",
    ),
}


@pytest.mark.parametrize(("line", "cause"), LINES.values(), ids=LINES.keys())
def test_a_fault_names_its_line_and_a_cure(tmp_path, line, cause):
    fault = error_from(
        write_task(tmp_path, TEXT | {"clean": "a cat sees", "corrupted": "a dog sees"}, "", line)
    )
    assert fault.cause.startswith("line 3")
    assert cause in fault.cause
    assert len(fault.cause) < 300


def test_an_answer_needs_a_logit_but_a_token_of_a_prompt_does_not():
    """As in a model of modular addition: "=" occurs in prompts and is never an answer."""
    model = FakeModel(None, d_vocab=8, n_logits=7)
    assert load_task(
        [{"clean": [1, 2, 7], "corrupted": [1, 3, 7], "answer": 3, "wrong": 4}], model
    ).pairs[0].clean == (1, 2, 7)
    assert (
        "token id 7 does not exist"
        in error_from(
            [{"clean": [1, 2, 7], "corrupted": [1, 3, 7], "answer": 7, "wrong": 4}], model
        ).cause
    )


def test_inline_pairs_are_counted_from_1():
    assert error_from([IDS, IDS | {"answer": 1000}]).cause.startswith("pair 2, answer")


def test_the_error_counts_the_other_pairs_with_faults(tmp_path):
    bad = IDS | {"answer": 1000}
    assert (
        "(2 more pairs have faults.)" in error_from(write_task(tmp_path, IDS, bad, bad, bad)).cause
    )


def test_a_pair_written_twice(tmp_path):
    fault = error_from(write_task(tmp_path, IDS, IDS | {"wrong": 7}, IDS | {"template": "other"}))
    assert fault.cause == "line 3 repeats line 1."
    fault = error_from(write_task(tmp_path, IDS | {"answer": [20, 21]}, IDS | {"answer": [21, 20]}))
    assert fault.cause == "line 2 repeats line 1."


def test_text_needs_a_tokenizer(tmp_path):
    assert (
        "this model has no tokenizer"
        in error_from(write_task(tmp_path, TEXT), FakeModel(tokenizer=None)).cause
    )
    assert "this model has no tokenizer" in error_from("ioi", FakeModel(tokenizer=None)).cause


def test_files_that_cannot_be_read(tmp_path):
    assert "neither a built-in task nor a file" in error_from("no_such_task").cause
    assert "ioi" in error_from("no_such_task").cure
    assert "neither a built-in task nor a file" in error_from(tmp_path).cause
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"clean": "é"}'.encode("latin-1"))
    assert "is not UTF-8 text" in error_from(latin).cause
    assert error_from(latin).cure == "Save it as UTF-8."
    empty = tmp_path / "empty.jsonl"
    empty.write_text(" \n\n")
    assert "has no pairs" in error_from(empty).cause
    huge = tmp_path / "huge.jsonl"
    with huge.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # sparse: nothing is written
    assert "larger than 64 MiB" in error_from(huge).cause
    assert "The list of pairs is empty" in error_from([]).cause


@pytest.mark.parametrize("pairs", [0, -3])
def test_at_least_one_pair(pairs):
    with pytest.raises(TaskError, match=f"pairs is {pairs}"):
        load_task([IDS], FakeModel(), pairs=pairs)
