"""What an ablation is compared with: each of its nodes alone, and random sets."""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.known_circuits.hand_built import build_known_circuit
from discovery import load_model, load_task
from discovery.methods.controls import compare_with_controls


def test_controls_are_other_nodes_and_leave_the_metric(tmp_path: Path) -> None:
    model = load_model(build_known_circuit("induction").save(tmp_path))
    task = load_task(str(tmp_path / "task.jsonl"), model, pairs=8)
    comparison = compare_with_controls(model, task, ["a0.h2", "a1.h1"], controls=10)
    assert [node for node, _ in comparison.per_node] == ["a0.h2", "a1.h1"]
    assert len(comparison.controls) == 10
    assert comparison.n_possible == math.comb(6, 2)
    assert comparison.as_large == 0
    everything = [str(node) for node in model.info.nodes()]
    assert compare_with_controls(model, task, everything, per_node=False).controls == ()


def test_too_few_other_nodes_are_drawn_from_all_nodes(tmp_path: Path) -> None:
    model = load_model(build_known_circuit("induction").save(tmp_path))
    task = load_task(str(tmp_path / "task.jsonl"), model, pairs=8)
    nodes = [str(node) for node in model.info.nodes()][:6]
    comparison = compare_with_controls(model, task, nodes, per_node=False, controls=5)
    assert 0 < len(comparison.controls) <= 5
