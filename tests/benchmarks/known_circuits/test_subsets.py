"""Every subset of a small model, and the optimum among them."""

from __future__ import annotations

import pytest

from benchmarks.known_circuits.hand_built import build_known_circuit
from benchmarks.known_circuits.subsets import SubsetTable, measure_all_subsets
from benchmarks.known_circuits.truth import group_pairs, tabulate_f
from benchmarks.methods.evaluator import as_one_split
from discovery import load_model, load_task
from discovery.backends.base import Backend
from discovery.sites import Node
from discovery.tasks.task import Task
from tests.oracles.evaluation.faithfulness import nodes


def test_a_table_of_every_subset_is_that_of_the_plain_forward_pass(
    case: tuple[Backend, Task],
) -> None:
    """Only resample is compared, since the means of the two tables are over different pairs."""
    model, task = case
    built = build_known_circuit("induction")
    names = [str(node) for node in model.info.nodes()]
    assert tuple(names) == built.universe
    groups = group_pairs(built)
    pairs = [
        {"clean": clean, "corrupted": corrupted, "answer": answer, "wrong": wrong}
        for group in groups
        for clean, corrupted, answer, wrong in zip(
            group.clean.tolist(),
            group.corrupted.tolist(),
            group.answers.tolist(),
            group.wrongs.tolist(),
            strict=True,
        )
    ]
    table = measure_all_subsets(model, as_one_split(task, load_task(pairs, model).pairs))
    assert table.f["resample"] == pytest.approx(
        tabulate_f(built, groups, "resample").tolist(), abs=1e-4
    )
    circuit = nodes("a0.h2", "a1.h1")
    assert (
        table.f_of(circuit, "resample")
        == table.f["resample"][sum(1 << names.index(str(node)) for node in circuit)]
    )


def test_more_than_sixteen_nodes_are_refused() -> None:
    model = load_model("bundled", device="cpu")
    with pytest.raises(ValueError, match="20 nodes have 1,048,576 subsets"):
        measure_all_subsets(model, load_task("ioi", model, pairs=4))


def test_the_distance_is_the_worse_of_both_ablations() -> None:
    table = SubsetTable((Node.parse("a0.h0"),), {"resample": [0.0, 0.9], "mean": [0.0, 1.3]}, 1.0)
    assert table.distance(nodes("a0.h0")) == pytest.approx(0.3)
