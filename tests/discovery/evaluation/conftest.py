"""Hand-built models on the evaluator's bench, and beside it the same numbers by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from benchmarks.known_circuits.known_circuit import KnownCircuit
from tests.oracles.faithfulness import FaithfulnessOracle

PAIRS = 48


@dataclass
class LoadedCase:
    """A hand-built case, loaded: the bench of its discovery pairs, and the same by hand."""

    case: KnownCircuit
    model: Any
    task: Any
    bench: Any
    _hands: dict[str, FaithfulnessOracle] = field(default_factory=dict)

    def f(self, ablation: Any) -> Any:
        return self.bench.f(ablation)

    def oracle(self, ablation: str) -> FaithfulnessOracle:
        """By hand, the pairs in the bench's order."""
        if ablation not in self._hands:
            self._hands[ablation] = FaithfulnessOracle(
                self.case.config, self.case.state, self.bench.engine.task.pairs, ablation
            )
        return self._hands[ablation]


@pytest.fixture(scope="session")
def load_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedCase]:
    """A hand-built case by name, loaded once."""
    from benchmarks.known_circuits.hand_built import build_known_circuit
    from discovery import load_model, load_task
    from discovery.engine import Meter
    from discovery.evaluation import SplitEvaluator

    made: dict[str, LoadedCase] = {}

    def of(name: str) -> LoadedCase:
        if name not in made:
            case = build_known_circuit(name)
            folder = case.save(tmp_path_factory.mktemp(name))
            model = load_model(folder)
            task = load_task(folder / "task.jsonl", model, pairs=PAIRS)
            bench = SplitEvaluator.of(
                model, task.discovery, "all", 0, metric=None, memory=None, meter=Meter()
            )
            made[name] = LoadedCase(case, model, task, bench)
        return made[name]

    return of
