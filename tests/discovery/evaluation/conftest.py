"""Hand-built models on the evaluator's bench, and beside it the same numbers by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from benchmarks.known_circuits.known_circuit import Case
from tests.oracles.faithfulness import ByHand

PAIRS = 48


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Place:
    """A hand-built case, loaded: the bench of its discovery pairs, and the same by hand."""

    case: Case
    model: Any
    task: Any
    bench: Any
    _hands: dict[str, ByHand] = field(default_factory=dict)

    def f(self, ablation: Any) -> Any:
        return self.bench.f(ablation)

    def hand(self, ablation: str) -> ByHand:
        """By hand, the pairs in the bench's order."""
        if ablation not in self._hands:
            self._hands[ablation] = ByHand(self.case.config, self.case.state, self.bench.engine.task.pairs, ablation)
        return self._hands[ablation]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Place]:
    """A hand-built case by name, loaded once."""
    from benchmarks.known_circuits.hand_built import build
    from discovery import load_model, load_task
    from discovery.engine import Meter
    from discovery.evaluation import Bench

    made: dict[str, Place] = {}

    def of(name: str) -> Place:
        if name not in made:
            case = build(name)
            folder = case.save(tmp_path_factory.mktemp(name))
            model = load_model(folder)
            task = load_task(folder / "task.jsonl", model, pairs=PAIRS)
            bench = Bench.of(model, task.discovery, "all", 0, metric=None, memory=None, meter=Meter())
            made[name] = Place(case, model, task, bench)
        return made[name]

    return of
