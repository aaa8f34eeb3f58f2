"""Tasks are values: their parts, their fingerprint, and sampling by seed."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from benchmarks.random_models.tiny_models import FakeModel, ToyTokenizer, as_task, random_pairs
from discovery.tasks import load_task
from discovery.tasks.pairs import MarkedPair
from discovery.tasks.task import EncodedPair, Task


def ids(count: int, templates: int = 1) -> list[dict[str, object]]:
    return [
        {
            "clean": [1, n + 10, 3],
            "corrupted": [1, n + 300, 3],
            "answer": n,
            "wrong": 900,
            "template": f"t{n % templates}",
        }
        for n in range(count)
    ]


def test_the_parts_are_tasks_of_the_same_name_metric_and_seed():
    task = load_task(ids(12, templates=4), FakeModel(), seed=5)
    assert len(task.discovery) + len(task.heldout) == len(task) == 12
    for part, split in ((task.discovery, "discovery"), (task.heldout, "heldout")):
        assert (part.name, part.metric, part.seed, part.split_method) == (
            task.name,
            task.metric,
            5,
            task.split_method,
        )
        assert set(part.splits) == {split}
        assert all(pair in task.pairs for pair in part.pairs)
        assert getattr(part, split).pairs == part.pairs
    assert not {p.clean for p in task.discovery.pairs} & {p.clean for p in task.heldout.pairs}
    assert task.discovery.heldout.pairs == ()


def test_the_order_of_pairs_is_kept_in_the_parts():
    task = load_task(ids(20), FakeModel())
    order = [pair.clean for pair in task.pairs]
    for part in (task.discovery, task.heldout):
        places = [order.index(pair.clean) for pair in part.pairs]
        assert places == sorted(places)


def test_reverse_pairs_are_in_neither_part_and_said_so():
    pairs = [*ids(4), {"clean": [1, 300, 3], "corrupted": [1, 10, 3], "answer": 900, "wrong": 0}]
    task = load_task(pairs, FakeModel())
    assert task.splits[-1] is None
    assert len(task) == 5
    assert len(task.discovery) == len(task.heldout) == 2
    assert "1 pairs repeat or reverse another and are in neither split." in task.warnings


def test_a_sample_is_drawn_by_seed_and_keeps_the_order():
    written, model = ids(30), FakeModel()
    five = load_task(written, model, pairs=5, seed=1)
    assert len(five) == 5
    assert five.pairs == load_task(written, model, pairs=5, seed=1).pairs
    assert five.pairs != load_task(written, model, pairs=5, seed=2).pairs
    assert [pair.clean for pair in five.pairs] == sorted(pair.clean for pair in five.pairs)
    assert load_task(written, model, pairs=99).pairs == load_task(written, model).pairs


def test_the_fingerprint_is_of_the_pairs_alone():
    task = load_task(ids(8), FakeModel(), seed=0)
    assert re.fullmatch("[0-9a-f]{64}", task.fingerprint)
    for same in (
        replace(task, name="x"),
        replace(task, metric="kl_divergence"),
        replace(task, seed=7),
        load_task(ids(8), FakeModel(), seed=9),
    ):
        assert same.fingerprint == task.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"clean": (1, 2, 9)},
        {"corrupted": (9, 9, 3)},
        {"answer": (8,)},
        {"answer": (4, 8)},
        {"wrong": (8,)},
        {"template": "x"},
        {"labels": {"end": 2}},
    ],
)
def test_every_field_of_a_pair_is_in_the_fingerprint(change):
    pair = EncodedPair((1, 2, 3), (1, 5, 3), (4,), (6,), "t", {"end": 1})
    assert as_task([pair]).fingerprint != as_task([replace(pair, **change)]).fingerprint


def test_the_order_of_pairs_is_in_the_fingerprint_and_that_of_labels_is_not():
    first, second = random_pairs([4, 4])
    assert as_task([first, second]).fingerprint != as_task([second, first]).fingerprint
    one, other = (replace(first, labels=labels) for labels in ({"a": 0, "b": 1}, {"b": 1, "a": 0}))
    assert as_task([one]).fingerprint == as_task([other]).fingerprint


def test_first_difference():
    assert EncodedPair((1, 2, 3), (1, 5, 3), (4,), (6,)).first_difference == 1
    assert EncodedPair((1, 2, 3), (0, 5, 3), (4,), (6,)).first_difference == 0
    assert EncodedPair((1, 2, 3), (1, 2, 3), (4,), (6,)).first_difference == 3


def test_a_pair_and_its_reverse_have_one_key_and_others_have_others():
    pair = EncodedPair((1, 2), (1, 3), (4,), (5,), "t")
    assert pair.key == EncodedPair((1, 3), (1, 2), (5,), (4,), "other").key
    assert pair.key != EncodedPair((1, 3), (1, 2), (4,), (5,)).key
    assert (
        EncodedPair((1, 2), (1, 3), (4, 6), (5, 7)).key
        == EncodedPair((1, 3), (1, 2), (7, 5), (6, 4)).key
    )  # a set has no order
    assert pair.key != EncodedPair((1, 2), (1, 3), (4,), (6,)).key


def test_one_length():
    assert as_task(random_pairs([4, 4])).has_one_length
    assert not as_task(random_pairs([4, 5])).has_one_length


def test_an_empty_part_has_no_pairs():
    assert len(Task("t", (), (), "none").heldout) == 0


@pytest.mark.parametrize("bos", [False, True])
def test_marks_become_the_position_of_the_token_that_ends_there(bos):
    tokenizer = ToyTokenizer(bos)
    clean = "Then Maria gave Johannes the"
    marks = {"S": clean.index(" gave"), "IO": clean.index(" the")}
    placed = MarkedPair(
        clean, clean.replace("Maria", "Peter"), " ball", " cup", "t", marks
    ).with_token_labels(tokenizer)
    tokens = [tokenizer.decode([token]) for token in tokenizer.encode(clean)]
    assert tokens[placed.labels["S"]] == " Maria"
    assert tokens[placed.labels["IO"]] == "es"  # the second token of a name of two
    assert placed.labels["end"] == -1
