"""Repeated searches on resamples, and what cut-off searches can decide about condition (f)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.known_circuits.hand_built import build_known_circuit
from discovery import discover
from discovery.agent.search.decision import ignore_decision
from discovery.agent.search.search_circuit import search_circuit
from discovery.agent.search.stored import StoredFunction, StoredSets
from discovery.agent.stages.stability import decidable_mean
from discovery.engine import Meter
from discovery.evaluation import ResampledFaithfulness, SplitEvaluator, thresholds
from discovery.methods.statistics import draw_bootstrap_weights
from tests.discovery.evaluation.synthetic import subsets


@pytest.mark.parametrize(
    ("jaccard", "cut", "expected"),
    [
        ([1.0, 0.9], [False, False], 0.95),
        ([0.5, 0.7], [False, False], 0.6),
        ([1.0] * 9 + [0.0], [False] * 9 + [True], 0.9),  # even at 0 it is enough
        ([1.0] * 7 + [0.9] * 3, [False] * 7 + [True] * 3, None),  # 0.7 to 1
        ([0.1] * 9 + [1.0], [False] * 9 + [True], 0.19),  # even at 1 it is too little
        ([1.0, 1.0], [True, True], None),
    ],
)
def test_the_mean_by_hand(jaccard: list[float], cut: list[bool], expected: float | None) -> None:
    assert decidable_mean(jaccard, cut) == (None if expected is None else pytest.approx(expected))


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.floats(0, 1)), min_size=1, max_size=20)
)
def test_the_decision_holds_wherever_the_cut_searches_would_have_ended(
    searches: list[tuple[float, bool, float]],
) -> None:
    mean = decidable_mean([value for value, _, _ in searches], [cut for _, cut, _ in searches])
    if mean is not None:
        true = sum(end if cut else value for value, cut, end in searches) / len(searches)
        assert (true >= thresholds.MIN_JACCARD - 1e-12) == (mean >= thresholds.MIN_JACCARD)


@pytest.mark.slow
def test_a_repetition_is_the_same_search_if_everything_was_measured(tmp_path: Any) -> None:
    """On a model of eight nodes, beside searches that measure every set with the pairs weighted."""
    model, task = build_known_circuit("or_softmax").load(tmp_path / "or_softmax", 96)
    run = discover(model, task, runs_dir=tmp_path / "runs")
    circuit = frozenset(run.circuit.members)
    evaluator = SplitEvaluator.of(
        model, task.discovery, "all", 0, metric=None, memory=None, meter=Meter()
    )
    universe = sorted(model.info.nodes())
    f_by_ablation = evaluator.f_by_ablation
    for f in f_by_ablation.values():
        f(list(subsets(universe)))
    stored = {ablation: StoredSets(f) for ablation, f in f_by_ablation.items()}
    draws = draw_bootstrap_weights(evaluator.engine.task, 5, 1)
    for weights in draws:
        functions = {ablation: StoredFunction(sets, weights) for ablation, sets in stored.items()}
        found = search_circuit(functions, frozenset(universe), universe, 0, ignore_decision)
        assert found.circuit == circuit, "its nodes are needed on every draw"
        for ablation, f in f_by_ablation.items():
            exact = ResampledFaithfulness(f, weights)
            sets = list(subsets(universe))
            torch.testing.assert_close(functions[ablation](sets, ""), exact(sets))
