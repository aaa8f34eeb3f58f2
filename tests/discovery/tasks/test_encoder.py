"""The warnings about pairs, and unknown words. Other errors are tested in test_task_file.py."""

from __future__ import annotations

import pytest

from discovery.errors import TaskError
from discovery.tasks import load_task
from tests.discovery.tasks.stand_ins import FakeModel, UnknownAsOneToken

TEXT = {"clean": "the cat sees", "corrupted": "the dog sees", "answer": " fish", "wrong": " bones"}
IDS = {"clean": [1, 2, 3], "corrupted": [1, 5, 3], "answer": 4, "wrong": 6}


def test_last_tokens_that_differ_are_a_warning():
    (warning,) = load_task([IDS, IDS | {"corrupted": [1, 2, 7], "answer": 8}], FakeModel()).warnings
    assert warning.startswith("1 of 2 pairs end in different tokens")


def test_one_answer_that_serves_most_pairs_is_a_warning():
    pairs = [
        {
            "clean": [1, 2, 3],
            "corrupted": [1, 10 + n, 3],
            "answer": [4, 5] if n % 2 else [5, 4],
            "wrong": 6,
        }
        for n in range(3)
    ]
    assert load_task(pairs[:1], FakeModel()).warnings == ()
    (warning,) = load_task(pairs, FakeModel()).warnings
    assert "serves 3 of 3 pairs" in warning
    others = [{**pair, "answer": 20 + n} for n, pair in enumerate(pairs)]
    assert load_task(others, FakeModel()).warnings == ()
    five = [*pairs, *({**pair, "wrong": 7} for pair in others[:2])]
    assert load_task(five, FakeModel()).warnings == ()  # 3 of 5 is 60%, and not over it


def test_unknown_words_are_a_warning():
    unknown = TEXT | {"clean": "Xyzzy cat sees", "corrupted": "Xyzzy dog sees"}
    warning = load_task([TEXT, unknown], FakeModel()).warnings[0]
    assert warning.startswith("1 pairs, first pair 2, hold words that the tokenizer does not know")
    assert "('Xyzzy')" in warning


def test_what_unknown_words_make_the_same_names_them():
    """The message names the words, and not only the token that all of them become."""
    model = FakeModel(UnknownAsOneToken())
    sides = TEXT | {"clean": "The Xyzzy sees", "corrupted": "The Plugh sees"}
    with pytest.raises(TaskError, match="because the tokenizer does not know 'Xyzzy', 'Plugh'"):
        load_task([sides], model)
    answers = TEXT | {"clean": "The Xyzzy sees", "corrupted": "The cat sees", "answer": " Plugh"}
    with pytest.raises(TaskError, match="pair 1, answer: the tokenizer does not know ' Plugh'"):
        load_task([answers], model)


def test_templates_of_few_pairs_are_a_warning():
    def pairs(*sizes: int) -> list[dict[str, object]]:
        return [
            {
                "clean": [1, n, 3, t],
                "corrupted": [1, n + 50, 3, t],
                "answer": n,
                "wrong": n + 50,
                "template": f"t{t}",
            }
            for t, size in enumerate(sizes)
            for n in range(5 + 10 * t, 5 + 10 * t + size)
        ]

    (warning,) = load_task(pairs(5, 4, 1), FakeModel()).warnings
    assert warning.startswith("2 of 3 templates have fewer than 5 pairs")
    assert load_task(pairs(5, 5), FakeModel()).warnings == ()
    assert load_task(pairs(3), FakeModel()).warnings == ()


def test_warnings_describe_the_pairs_that_are_used():
    ending = [
        {"clean": [1, n, 3], "corrupted": [1, 2, 4], "answer": n, "wrong": 2} for n in range(5, 15)
    ]
    assert load_task(ending, FakeModel(), pairs=4).warnings[0].startswith("4 of 4 pairs")
