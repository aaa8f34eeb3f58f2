"""The sets of nodes that are kept with a run are read back as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from discovery.agent.saved.measured_sets import (
    HELDOUT_SETS,
    restore_set_metrics,
    save_set_metrics,
)
from discovery.methods.ablation import NodeSet
from discovery.sites import Node, head, mlp

NODES = [*(head(layer, h) for layer in range(3) for h in range(5)), mlp(0), mlp(1)]
N_PAIRS = 6
node_sets = st.frozensets(st.sampled_from(NODES))
measured = st.dictionaries(node_sets, st.integers(1, N_PAIRS), max_size=8)


class FakeSetMetric:
    """What an evaluator has measured under one ablation."""

    def __init__(self) -> None:
        self.on_all: dict[NodeSet, torch.Tensor] = {}
        self.on_first: dict[NodeSet, torch.Tensor] = {}

    def measurements(self) -> Any:
        return self.on_all, self.on_first

    def restore(self, on_all: Any, on_first: Any) -> None:
        self.on_all, self.on_first = on_all, on_first


class FakeEvaluator:
    """An evaluator of six pairs; it is also f and the engine."""

    everything = frozenset(NODES)

    def __init__(self) -> None:
        self.set_metric = FakeSetMetric()
        self.engine = range(N_PAIRS)

    @property
    def measured_f_by_ablation(self) -> dict[str, FakeEvaluator]:
        return {"mean": self}

    def f(self, ablation: str) -> FakeEvaluator:
        assert ablation == "mean"
        return self


class FakeRun:
    """A run's folder in memory."""

    def __init__(self) -> None:
        self.arrays: dict[str, tuple[dict[str, np.ndarray], dict[str, str]]] = {}

    def save_arrays(self, result_id: str, arrays: Any, metadata: Any) -> None:
        self.arrays[result_id] = (arrays, metadata)

    def array_ids(self) -> list[str]:
        return list(self.arrays)

    def load_arrays(self, result_id: str) -> dict[str, np.ndarray]:
        return self.arrays[result_id][0]

    def array_metadata(self, result_id: str) -> dict[str, str]:
        return self.arrays[result_id][1]


@given(sets=measured)
def test_sets_and_their_metric_are_read_back(sets: dict[NodeSet, int]) -> None:
    run: Any = FakeRun()
    evaluator: Any = FakeEvaluator()
    for number, (nodes, n_pairs) in enumerate(sets.items()):
        values = torch.arange(n_pairs) + 10.0 * number
        is_whole = n_pairs == N_PAIRS
        part = evaluator.set_metric.on_all if is_whole else evaluator.set_metric.on_first
        part[nodes] = values
    save_set_metrics(run, evaluator, HELDOUT_SETS)
    again: Any = FakeEvaluator()
    restore_set_metrics(run, again, HELDOUT_SETS)
    for before, after in zip(
        evaluator.set_metric.measurements(), again.set_metric.measurements(), strict=True
    ):
        assert list(before) == list(after)
        assert all(torch.equal(before[nodes], after[nodes]) for nodes in before)


def test_sets_that_an_earlier_version_listed_by_name_are_read() -> None:
    """The second set is empty."""
    run: Any = FakeRun()
    arrays = {"whole": np.ones((2, N_PAIRS), np.float32), "parts": np.zeros((0, 0), np.float32)}
    run.save_arrays("sets-mean", arrays, {"whole": "a0.h1,m0;", "parts": ""})
    evaluator: Any = FakeEvaluator()
    restore_set_metrics(run, evaluator)
    assert list(evaluator.set_metric.on_all) == [frozenset({head(0, 1), mlp(0)}), frozenset()]
    assert evaluator.set_metric.on_first == {}


def test_a_node_keeps_its_bit_beyond_a_byte() -> None:
    run: Any = FakeRun()
    evaluator: Any = FakeEvaluator()
    last: Node = max(NODES)
    evaluator.set_metric.on_all[frozenset({last})] = torch.zeros(N_PAIRS)
    save_set_metrics(run, evaluator)
    arrays, metadata = run.arrays["sets-mean"]
    assert arrays["whole_nodes"].shape == (1, 3), "17 nodes need 3 bytes"
    assert metadata["nodes"].split(",")[-1] == str(last)
