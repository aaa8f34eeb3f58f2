"""Other methods on a model whose circuit is known, and those from papers against an oracle."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.known_circuits.hand_built import build_known_circuit
from benchmarks.methods import baselines
from benchmarks.methods.baselines import BASELINES, run_baseline
from benchmarks.methods.evaluator import new_evaluator
from discovery.backends.base import Backend
from discovery.engine import attribute_sites
from discovery.tasks.task import Task
from tests.oracles.evaluation.faithfulness import nodes
from tests.oracles.patching.node_gradients import attribute_by_autograd


@pytest.mark.parametrize(
    "name", [name for name in BASELINES if not name.startswith("direct logit attribution")]
)
def test_every_method_finds_plain_induction(name: str, case: tuple[Backend, Task]) -> None:
    model, task = case
    shared = new_evaluator(model, task.discovery)
    result, repeated = (
        run_baseline(BASELINES[name], new_evaluator(model, task.discovery), shared)
        for _ in range(2)
    )
    assert result.circuit == repeated.circuit == nodes("a0.h2", "a1.h1")
    assert set(result.scores) == set(model.info.nodes())
    assert result.circuit_cost == pytest.approx(repeated.circuit_cost), (
        "sets that were measured before are counted all the same"
    )
    assert result.circuit_cost > 0


def test_integrated_gradients_end_on_the_clean_run_and_approach_the_integral(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, task = build_known_circuit("and_mlp").load(tmp_path / "and_mlp", pairs=8, device="cpu")
    monkeypatch.setattr(baselines, "INTEGRATION_STEPS", 1)
    evaluator = new_evaluator(model, task)
    assert baselines.score_by_eap_ig(evaluator) == {
        node: pytest.approx(abs(value), rel=1e-3, abs=1e-3)
        for node, value in attribute_by_autograd(model, task, "clean").items()
    }
    assert evaluator.engine.meter.spent == pytest.approx(5 * len(task), rel=0.05), (
        "two cached passes, a third one, and a backward pass for two"
    )
    monkeypatch.setattr(baselines, "INTEGRATION_STEPS", 200)
    scores = baselines.score_by_eap_ig(new_evaluator(model, task))
    [(_, block)] = new_evaluator(model, task).engine.blocks()
    heads = attribute_sites(block, "clean", "z", 200).sum((0, 2))
    for node, score in scores.items():
        if node.head is not None:
            integral = abs(float(heads[node.layer, node.head]))
            assert score == pytest.approx(integral, rel=0.05, abs=0.5)
