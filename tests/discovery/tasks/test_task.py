"""Tasks as values: their splits, their fingerprint, and sampling by seed."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery.tasks import load_task
from discovery.tasks.pairs import MarkedPair
from discovery.tasks.task import EncodedPair, Task
from tests.discovery.tasks.stand_ins import FakeModel, ToyTokenizer


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


def test_the_splits_are_tasks_of_the_same_name_metric_and_seed():
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


def test_the_splits_keep_the_order_of_pairs():
    task = load_task(ids(20), FakeModel())
    order = [pair.clean for pair in task.pairs]
    for part in (task.discovery, task.heldout):
        indices = [order.index(pair.clean) for pair in part.pairs]
        assert indices == sorted(indices)


def test_reverse_pairs_are_in_neither_split_and_a_warning_says_so():
    pairs = [*ids(4), {"clean": [1, 300, 3], "corrupted": [1, 10, 3], "answer": 900, "wrong": 0}]
    task = load_task(pairs, FakeModel())
    assert task.splits[-1] is None
    assert len(task) == 5
    assert len(task.discovery) == len(task.heldout) == 2
    assert "1 pairs repeat or reverse another and are in neither split." in task.warnings


def test_a_sample_is_drawn_by_seed_and_keeps_the_order():
    pairs = ids(30)
    model = FakeModel()
    five = load_task(pairs, model, pairs=5, seed=1)
    assert len(five) == 5
    assert five.pairs == load_task(pairs, model, pairs=5, seed=1).pairs
    assert five.pairs != load_task(pairs, model, pairs=5, seed=2).pairs
    assert [pair.clean for pair in five.pairs] == sorted(pair.clean for pair in five.pairs)
    assert load_task(pairs, model, pairs=99).pairs == load_task(pairs, model).pairs


def test_the_fingerprint_depends_on_the_pairs_alone():
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
    pair = EncodedPair(
        clean=(1, 2, 3),
        corrupted=(1, 5, 3),
        answer=(4,),
        wrong=(6,),
        template="t",
        labels={"end": 1},
    )
    assert as_task([pair]).fingerprint != as_task([replace(pair, **change)]).fingerprint


def test_the_fingerprint_depends_on_the_order_of_pairs_and_not_of_labels():
    first, second = random_pairs([4, 4])
    assert as_task([first, second]).fingerprint != as_task([second, first]).fingerprint
    one, other = (replace(first, labels=labels) for labels in ({"a": 0, "b": 1}, {"b": 1, "a": 0}))
    assert as_task([one]).fingerprint == as_task([other]).fingerprint


def test_first_difference():
    assert (
        EncodedPair(clean=(1, 2, 3), corrupted=(1, 5, 3), answer=(4,), wrong=(6,)).first_difference
        == 1
    )
    assert (
        EncodedPair(clean=(1, 2, 3), corrupted=(0, 5, 3), answer=(4,), wrong=(6,)).first_difference
        == 0
    )
    assert (
        EncodedPair(clean=(1, 2, 3), corrupted=(1, 2, 3), answer=(4,), wrong=(6,)).first_difference
        == 3
    )


def test_a_pair_and_its_reverse_have_one_key_and_others_have_others():
    pair = EncodedPair(clean=(1, 2), corrupted=(1, 3), answer=(4,), wrong=(5,), template="t")
    assert (
        pair.key
        == EncodedPair(
            clean=(1, 3), corrupted=(1, 2), answer=(5,), wrong=(4,), template="other"
        ).key
    )
    assert pair.key != EncodedPair(clean=(1, 3), corrupted=(1, 2), answer=(4,), wrong=(5,)).key
    assert (
        EncodedPair(clean=(1, 2), corrupted=(1, 3), answer=(4, 6), wrong=(5, 7)).key
        == EncodedPair(clean=(1, 3), corrupted=(1, 2), answer=(7, 5), wrong=(6, 4)).key
    )  # a set has no order
    assert pair.key != EncodedPair(clean=(1, 2), corrupted=(1, 3), answer=(4,), wrong=(6,)).key


def test_one_length():
    assert as_task(random_pairs([4, 4])).has_one_length
    assert not as_task(random_pairs([4, 5])).has_one_length


def test_the_split_of_an_empty_task_has_no_pairs():
    assert len(Task(name="t", pairs=(), splits=(), split_method="none").heldout) == 0


@pytest.mark.parametrize("bos", [False, True])
def test_marks_become_the_position_of_the_token_that_ends_there(bos):
    tokenizer = ToyTokenizer(bos)
    clean = "Then Maria gave Johannes the"
    marks = {"S": clean.index(" gave"), "IO": clean.index(" the")}
    labelled = MarkedPair(
        clean=clean,
        corrupted=clean.replace("Maria", "Peter"),
        answer=" ball",
        wrong=" cup",
        template="t",
        marks=marks,
    ).with_token_labels(tokenizer)
    tokens = [tokenizer.decode([token]) for token in tokenizer.encode(clean)]
    assert tokens[labelled.labels["S"]] == " Maria"
    assert tokens[labelled.labels["IO"]] == "es"  # the second token of a name of two
    assert labelled.labels["end"] == -1
