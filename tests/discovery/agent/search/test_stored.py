"""f on a resample, from what a search measured: exact for measured sets, a sum for others."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from discovery.agent.search.stored import StoredFunction, StoredSets
from discovery.methods.ablation import NodeSet
from discovery.sites import Node, head
from tests.discovery.evaluation.synthetic import subsets

N_PAIRS = 12
NODES = [head(layer, h) for layer in range(7) for h in range(10)]  # more than one word of bits


class PairMetric:
    """Stands for a `Faithfulness` whose metric is a plain function of the set and the pair."""

    def __init__(self, value: Callable[[NodeSet, int], float], nodes: Sequence[Node]) -> None:
        self.value = value
        self.everything: NodeSet = frozenset(nodes)
        self.whole: dict[NodeSet, Tensor] = {}
        self.parts: dict[NodeSet, Tensor] = {}
        self.set_metric = self
        self.full = self.metric(self.everything)
        self.empty = self.metric(frozenset())
        self.measure(self.everything, frozenset())

    def metric(self, nodes: NodeSet, count: int = N_PAIRS) -> Tensor:
        return torch.tensor([self.value(nodes, pair) for pair in range(count)]).double()

    def measure(self, *sets: NodeSet) -> None:
        self.whole.update({nodes: self.metric(nodes) for nodes in sets})

    def measure_part(self, *sets: NodeSet, count: int = 4) -> None:
        self.parts.update({nodes: self.metric(nodes, count) for nodes in sets})

    def measurements(self) -> tuple[dict[NodeSet, Tensor], dict[NodeSet, Tensor]]:
        return dict(self.whole), dict(self.parts)

    def truth(self, nodes: NodeSet, weights: Tensor) -> float:
        empty = float(self.empty @ weights)
        metric = float(self.metric(nodes) @ weights)
        return (metric - empty) / (float(self.full @ weights) - empty)


def random_weights(seed: int) -> Tensor:
    drawn = torch.tensor(random.Random(seed).choices(range(N_PAIRS), k=N_PAIRS))
    return torch.bincount(drawn, minlength=N_PAIRS).double() / N_PAIRS


def additive(nodes: NodeSet, pair: int) -> float:
    """Every node adds a number of its own in every pair."""
    return sum(
        random.Random(f"{node}-{pair}").uniform(-0.1, 0.2) for node in sorted(nodes)
    ) + 3.0 * (NODES[0] in nodes)


def interacting(nodes: NodeSet, pair: int) -> float:
    """An OR beside the sum."""
    return additive(nodes, pair) + 2.0 * bool({NODES[1], NODES[2]} & nodes)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_measured_sets_give_their_values(seed: int) -> None:
    rng = random.Random(seed)
    f: Any = PairMetric(interacting, NODES)
    sets = [frozenset(rng.sample(NODES, rng.randint(0, len(NODES)))) for _ in range(5)]
    f.measure(*sets)
    weights = random_weights(seed)
    function = StoredFunction(StoredSets(f), weights)
    expected = torch.tensor([f.truth(nodes, weights) for nodes in sets]).double()
    torch.testing.assert_close(function(sets, ""), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(function.screen(sets, ""), expected)
    differences = function.differences(sets[1:], sets[:-1], [0.1], "")
    torch.testing.assert_close(differences, expected[1:] - expected[:-1])


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_a_sum_is_exact_once_every_node_was_left_out_once(seed: int) -> None:
    rng = random.Random(seed)
    f: Any = PairMetric(additive, NODES)
    f.measure(*(f.everything - {node} for node in NODES))
    weights = random_weights(seed)
    function = StoredFunction(StoredSets(f), weights)
    sets = [frozenset(rng.sample(NODES, rng.randint(0, len(NODES)))) for _ in range(5)]
    expected = torch.tensor([f.truth(nodes, weights) for nodes in sets]).double()
    torch.testing.assert_close(function(sets, ""), expected, atol=1e-5, rtol=1e-5)


def test_the_nearest_measurement_counts() -> None:
    """An OR: leaving out the second of two nodes was measured where the first was gone, too."""
    f: Any = PairMetric(interacting, NODES)
    both = f.everything - {NODES[1], NODES[2]}
    f.measure(*(f.everything - {node} for node in NODES), both)
    weights = random_weights(0)
    function = StoredFunction(StoredSets(f), weights)
    without_more = both - {NODES[5], NODES[6]}
    assert float(function([without_more], "")[0]) == pytest.approx(f.truth(without_more, weights))
    unmeasured: Any = PairMetric(interacting, NODES)
    unmeasured.measure(*(f.everything - {node} for node in NODES))
    wrong = StoredFunction(StoredSets(unmeasured), weights)([both], "")[0]
    assert abs(float(wrong) - f.truth(both, weights)) > 0.1, "it knows nothing of the OR"


def test_a_set_measured_on_few_pairs_is_compared_there_with_the_nearest_whole_one() -> None:
    f: Any = PairMetric(additive, NODES)
    part = f.everything - {NODES[3]}
    f.measure_part(part)
    weights = random_weights(1)
    first = weights[:4] / weights[:4].sum()
    change = float((f.metric(part) - f.full)[:4] @ first)
    gap = float((f.full - f.empty)[:4] @ first)
    (value,) = StoredFunction(StoredSets(f), weights)([part], "")
    assert float(value) == pytest.approx(1 + change / gap)


def test_what_is_measured_later_is_taken_over() -> None:
    f: Any = PairMetric(interacting, NODES[:4])
    stored = StoredSets(f)
    weights = random_weights(2)
    missing = frozenset(NODES[:2])
    before = float(StoredFunction(stored, weights)([missing], "")[0])
    f.measure(*subsets(NODES[:4]))
    stored.refresh()
    after = float(StoredFunction(stored, weights)([missing], "")[0])
    assert after == pytest.approx(f.truth(missing, weights))
    assert before != pytest.approx(after)


def test_all_subsets_of_a_few_nodes() -> None:
    """With everything measured there is nothing to estimate, whatever the function."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(16, N_PAIRS))
    nodes = NODES[:4]

    def value(kept: NodeSet, pair: int) -> float:
        number = sum(1 << nodes.index(node) for node in kept)
        return float(table[number, pair]) + 10.0 * (number == 15)

    f: Any = PairMetric(value, nodes)
    f.measure(*subsets(nodes))
    weights = random_weights(3)
    function = StoredFunction(StoredSets(f), weights)
    for kept, other in itertools.product(subsets(nodes), repeat=2):
        difference = function.differences([kept], [other], [0.1], "")
        expected = f.truth(kept, weights) - f.truth(other, weights)
        assert float(difference[0]) == pytest.approx(expected)
