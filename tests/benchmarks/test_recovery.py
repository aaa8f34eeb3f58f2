"""The optimum of a known model, and scores that were computed elsewhere."""

from __future__ import annotations

import pytest

from benchmarks.known_circuits.subsets import smallest, tabulate
from benchmarks.known_circuits.truth import known
from benchmarks.recovery import exported, methods_of, regrets
from discovery import load_model, load_task
from discovery.backends.base import Backend
from discovery.tasks.task import Task
from tests.oracles.faithfulness import nodes


def test_the_optimum_of_a_known_model_is_its_truth(case: tuple[Backend, Task]) -> None:
    model, task = case
    table = tabulate(model, task.discovery)
    truth = nodes(*known("induction", "resample").nodes)
    assert table.passing()[0] == truth
    best = smallest(table.passing())
    assert best == [truth]
    found = regrets(model, task.discovery, [truth, frozenset(), frozenset(table.nodes)], best)
    assert found == pytest.approx([0.0, 1 - table.distance(truth), 0.0]), "closer to 1 than the optimum, for being larger, earns nothing"


def test_published_scores_of_other_pairs_are_refused(case: tuple[Backend, Task]) -> None:
    model, task = case
    record = {"stamp": exported(model, task)["stamp"], "methods": {"theirs": {}}}
    assert methods_of({"a-model": record}, "a model", model, task) == {"theirs": {}}
    assert methods_of({}, "a model", model, task) == {}
    other = load_task("ioi", load_model("bundled", device="cpu"), pairs=4)
    with pytest.raises(ValueError, match="other weights or pairs"):
        methods_of({"a-model": record}, "a model", model, other)
