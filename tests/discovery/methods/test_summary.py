"""The largest cells of a grid, moments of an activation, and what an ablation is held against."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks.known_circuits.hand_built import build_known_circuit
from discovery.backends.loading.load import load_model
from discovery.engine.cost import MeasurementCost
from discovery.methods.controls import compare_with_controls
from discovery.methods.patching.sweep import Sweep
from discovery.methods.summary import summarise_activation, top_cells
from discovery.tasks import load_task


def sweep(values: torch.Tensor, positions: tuple[int | str, ...] = ()) -> Sweep:
    one = torch.zeros(1)
    return Sweep(
        "head_out",
        "denoising",
        "logit_difference",
        values,
        values.unsqueeze(0),
        one,
        one,
        positions,
        MeasurementCost(0.0, 0.0),
    )


def test_the_largest_cells_come_first_and_missing_ones_not_at_all() -> None:
    grid = torch.tensor([[0.1, float("nan"), -0.9], [0.5, 0.1, 0.0]])
    found = top_cells(sweep(grid), 4)
    assert [(cell.layer, cell.head, round(cell.value, 3)) for cell in found] == [
        (0, 2, -0.9),
        (1, 0, 0.5),
        (0, 0, 0.1),
        (1, 1, 0.1),
    ]
    assert len(top_cells(sweep(grid), 100)) == 5
    labelled = top_cells(sweep(grid, ("a", "b", "c")), 1)[0]
    assert (labelled.head, labelled.position) == (None, "c")


def test_moments_leave_out_what_is_not_finite() -> None:
    found = summarise_activation(torch.tensor([[1.0, float("inf")], [3.0, 4.0]]))
    assert (found.shape, found.n_nonfinite) == ((2, 2), 1)
    assert found.mean == pytest.approx(8 / 3)
    assert (found.low, found.high, found.norm) == (1.0, 4.0, 5.0)
    empty = summarise_activation(torch.tensor([float("nan")]), None)
    assert (empty.mean, empty.n_nonfinite) == (None, 1)


def test_controls_are_other_nodes_and_leave_the_metric(tmp_path: Path) -> None:
    model = load_model(build_known_circuit("induction").save(tmp_path))
    task = load_task(str(tmp_path / "task.jsonl"), model, pairs=8)
    found = compare_with_controls(model, task, ["a0.h2", "a1.h1"], controls=10)
    assert [node for node, _ in found.per_node] == ["a0.h2", "a1.h1"]
    assert len(found.controls) == 10
    assert found.n_possible == math.comb(6, 2)
    assert found.as_large == 0
    everything = [str(node) for node in model.info.nodes()]
    assert compare_with_controls(model, task, everything, each=False).controls == ()
    most = compare_with_controls(model, task, everything[:6], each=False, controls=5)
    assert 0 < len(most.controls) <= 5  # too few others: of any nodes
