"""Regrets of circuits, and scores that were computed elsewhere."""

from __future__ import annotations

import pytest

from benchmarks.circuits.recovery import export_record, measure_regrets, published_methods
from benchmarks.known_circuits.subsets import find_smallest, measure_all_subsets
from benchmarks.known_circuits.truth import load_truth
from discovery import load_model, load_task
from discovery.backends.base import Backend
from discovery.tasks.task import Task
from tests.oracles.evaluation.faithfulness import nodes


def test_the_optimum_of_a_known_model_is_its_truth(case: tuple[Backend, Task]) -> None:
    model, task = case
    table = measure_all_subsets(model, task.discovery)
    truth = nodes(*load_truth("induction", "resample").nodes)
    assert table.passing_sets()[0] == truth
    optima = find_smallest(table.passing_sets())
    assert optima == [truth]
    circuits = [truth, frozenset(), frozenset(table.nodes)]
    regrets = measure_regrets(model, task.discovery, circuits, optima)
    assert regrets == pytest.approx([0.0, 1 - table.distance(truth), 0.0]), (
        "the whole model is nearer to f = 1 than the optimum, and that earns nothing"
    )


def test_published_scores_of_other_pairs_are_refused(case: tuple[Backend, Task]) -> None:
    model, task = case
    record = {"stamp": export_record(model, task)["stamp"], "methods": {"theirs": {}}}
    assert published_methods({"a-model": record}, "a model", model, task) == {"theirs": {}}
    assert published_methods({}, "a model", model, task) == {}
    other = load_task("ioi", load_model("bundled", device="cpu"), pairs=4)
    with pytest.raises(ValueError, match="other weights or pairs"):
        published_methods({"a-model": record}, "a model", model, other)
