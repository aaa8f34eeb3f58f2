"""Rivals on a model whose circuit is known, and those written from papers against an independent computation."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.known_circuits.hand_built import build_known_circuit
from benchmarks.methods import baselines
from benchmarks.methods.baselines import BASELINES, run_baseline
from benchmarks.recovery import new_evaluator
from discovery import load_model, load_task
from discovery.backends.base import Backend
from discovery.engine import attribute_sites
from discovery.tasks.task import Task
from tests.oracles.faithfulness import nodes
from tests.oracles.node_gradients import node_attributions_by_autograd


@pytest.mark.parametrize(
    "name", [name for name in BASELINES if not name.startswith("direct logit attribution")]
)
def test_every_rival_finds_plain_induction(name: str, case: tuple[Backend, Task]) -> None:
    model, task = case
    known = new_evaluator(model, task.discovery)
    found, again = (
        run_baseline(BASELINES[name], new_evaluator(model, task.discovery), known) for _ in range(2)
    )
    assert found.circuit == again.circuit == nodes("a0.h2", "a1.h1")
    assert set(found.scores) == set(model.info.nodes())
    assert found.forward_equivalents == pytest.approx(again.forward_equivalents), (
        "what was known already is counted all the same"
    )
    assert found.forward_equivalents > 0


def test_integrated_gradients_end_on_the_clean_run_and_approach_the_integral(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = build_known_circuit("and_mlp").save(tmp_path / "and_mlp")
    model = load_model(place, device="cpu")
    task = load_task(place / "task.jsonl", model, pairs=8)
    monkeypatch.setattr(baselines, "INTEGRATION_STEPS", 1)
    bench = new_evaluator(model, task)
    assert baselines.score_by_eap_ig(bench) == {
        node: pytest.approx(abs(v), rel=1e-3, abs=1e-3)
        for node, v in node_attributions_by_autograd(model, task, "clean").items()
    }
    assert bench.engine.meter.spent == pytest.approx(5 * len(task), rel=0.05), (
        "two cached passes, one more and its way back"
    )
    monkeypatch.setattr(baselines, "INTEGRATION_STEPS", 200)
    found = baselines.score_by_eap_ig(new_evaluator(model, task))
    [(_, block)] = new_evaluator(model, task).engine.blocks()
    heads = attribute_sites(block, "clean", "z", 200).sum((0, 2))
    for node, value in found.items():
        if node.head is not None:
            assert value == pytest.approx(
                abs(float(heads[node.layer, node.head])), rel=0.05, abs=0.5
            )
