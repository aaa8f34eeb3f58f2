"""Hand-built models, ready to be evaluated, with an oracle for the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from benchmarks.known_circuits.known_circuit import KnownCircuit
from tests.oracles.evaluation.faithfulness import FaithfulnessOracle

PAIRS = 48


@dataclass
class LoadedCase:
    """A known circuit, its loaded model, and an evaluator of its discovery pairs."""

    known_circuit: KnownCircuit
    model: Any
    task: Any
    evaluator: Any
    _oracles: dict[str, FaithfulnessOracle] = field(default_factory=dict)

    def f(self, ablation: Any) -> Any:
        return self.evaluator.f(ablation)

    def oracle(self, ablation: str) -> FaithfulnessOracle:
        """The same numbers from the weights, with the pairs in the evaluator's order."""
        if ablation not in self._oracles:
            self._oracles[ablation] = FaithfulnessOracle(
                self.known_circuit.config,
                self.known_circuit.state,
                self.evaluator.engine.task.pairs,
                ablation,
                self.task.reference_source.draw(0),
            )
        return self._oracles[ablation]


@pytest.fixture(scope="session")
def load_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedCase]:
    """Loads a known circuit by name, once in a session."""
    from benchmarks.known_circuits.hand_built import build_known_circuit
    from discovery import load_model, load_task
    from discovery.engine import Meter
    from discovery.evaluation import SplitEvaluator

    cases: dict[str, LoadedCase] = {}

    def load(name: str) -> LoadedCase:
        if name not in cases:
            known_circuit = build_known_circuit(name)
            folder = known_circuit.save(tmp_path_factory.mktemp(name))
            model = load_model(folder)
            task = load_task(folder / "task.jsonl", model, pairs=PAIRS)
            evaluator = SplitEvaluator.of(
                model, task.discovery, "all", 0, metric=None, memory=None, meter=Meter()
            )
            cases[name] = LoadedCase(known_circuit, model, task, evaluator)
        return cases[name]

    return load
