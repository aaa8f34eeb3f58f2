"""Which nodes are checked on how many pairs, and what is said about the others."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from discovery.evaluation.sequential import (
    NodeSelection,
    SetDifference,
    check_sequentially,
    is_clear,
    measure_differences,
    select_nodes,
    simultaneous_confidence,
)
from discovery.methods.ablation import NodeSet
from discovery.sites import Node, head
from tests.discovery.evaluation.synthetic import SyntheticPairs
from tests.oracles.evaluation.condition_rules import ConditionOracle, draw_bound


def grid(layers: int, heads: int) -> list[Node]:
    return [head(layer, index) for layer in range(layers) for index in range(heads)]


UNIVERSE = grid(4, 5)


def gaps_of(
    effects: list[float], **settings: Any
) -> tuple[Any, dict[Node, tuple[NodeSet, NodeSet]]]:
    """f with the effect of each node, and the sets that measure it: the node alone and nothing."""
    by_node = dict(zip(UNIVERSE, effects, strict=False))
    f = SyntheticPairs(
        UNIVERSE, lambda kept: 1.0 if len(kept) == 20 else sum(by_node[v] for v in kept), **settings
    )
    return f, {v: (frozenset({v}), frozenset()) for v in by_node}


def test_clear_nodes_are_measured_on_32_pairs_and_the_nearest_on_all() -> None:
    """Without noise every node is clear of 0.1; the 8 nearest are 0.06 to 0.13."""
    effects = [n / 100 for n in range(19)]
    f, sets = gaps_of(effects)
    checked = check_sequentially(f, sets, 0.1, "test")
    n_of = [checked[v].n for v in UNIVERSE[:19]]
    nearest = sorted(range(19), key=lambda n: (abs(effects[n] - 0.1), UNIVERSE[n]))[:8]
    assert [n for n, pairs in enumerate(n_of) if pairs == 100] == sorted(nearest)
    assert set(n_of) == {32, 100}
    assert [checked[v].value for v in UNIVERSE[:19]] == pytest.approx(effects)


def test_nodes_that_are_not_clear_are_measured_on_all_pairs() -> None:
    f, sets = gaps_of([n / 100 for n in range(19)], noise=0.1)
    checked = check_sequentially(f, sets, 0.1, "test", n_nearest=0)
    oracle = ConditionOracle(f.everything, lambda kept: f.metric(kept).tolist())
    for v, (first, second) in sets.items():
        early = measure_differences(f, [(first, second)], "test", 32)[0]
        is_near = not is_clear(early, 0.1, simultaneous_confidence(19))
        assert checked[v].n == (100 if is_near else 32)
        if is_near:
            assert checked[v].value == pytest.approx(oracle.f(first) - oracle.f(second))
    assert {difference.n for difference in checked.values()} == {32, 100}


class DrawnPairs:
    """f with U = 1 and ∅ = 0 in each of 100 pairs, and three sets whose noise is correlated."""

    circuit, without, model = (frozenset({UNIVERSE[number]}) for number in range(3))
    n_pairs = 100

    def __init__(self, seed: int, correlation: float) -> None:
        rng = np.random.default_rng(seed)
        common = rng.normal(size=self.n_pairs)
        own = rng.normal(size=(3, self.n_pairs))
        self.full, self.empty = torch.ones(self.n_pairs), torch.zeros(self.n_pairs)
        self.metrics = {
            self.circuit: 0.9 + 0.3 * common,
            self.without: 0.7 + 0.3 * correlation * common + 0.1 * own[0],
            self.model: 0.8 + 0.05 * own[1],
        }

    def set_metric(self, sets: Any, label: str, pairs: int | None = None) -> torch.Tensor:
        values = np.stack([self.metrics.get(nodes, np.zeros(self.n_pairs)) for nodes in sets])
        return torch.tensor(values[:, :pairs])


@pytest.mark.parametrize("correlation", [1.0, 0.5, -0.5])
def test_the_error_beside_a_shared_difference_is_that_of_repeated_draws(correlation: float) -> None:
    """Whatever the shared difference has in common with the rest."""
    values, errors = [], []
    for seed in range(2000):
        f: Any = DrawnPairs(seed, correlation)
        (gap,) = measure_differences(
            f, [(f.without, f.model)], "test", 32, relative_to=(f.circuit, frozenset())
        )
        values.append(gap.value)
        errors.append(gap.error)
    assert np.mean(values) == pytest.approx(-0.1, abs=0.01)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(values), rel=0.06)


def test_the_outcome_on_few_pairs_is_that_on_all_pairs_nearly_always() -> None:
    """Of 400 nodes on either side of the bound, at most a few are clear on the wrong side."""
    wrong = 0
    for number in range(20):
        effects = np.random.default_rng(number).uniform(0.0, 0.2, 19).tolist()
        f, sets = gaps_of(effects, noise=0.15)
        f.noise_seed = number
        for v, gap in check_sequentially(f, sets, 0.1, "test", n_nearest=0).items():
            whole = abs(float(f.metric(frozenset({v})).mean()))
            wrong += (gap.size > 0.1) != (whole > 0.1)
    assert wrong <= 4


def test_with_32_pairs_or_fewer_everything_is_on_all_of_them() -> None:
    for n_pairs in (1, 2, 32):
        f, sets = gaps_of([0.3, 0.0], n_pairs=n_pairs)
        checked = check_sequentially(f, sets, 0.1, "test")
        assert {difference.n for difference in checked.values()} == {n_pairs}


def test_the_interval_of_a_difference_covers_it() -> None:
    """The lower bound exceeds the true difference in about 5% of 600 draws of 32 pairs.

    m(U) varies between pairs, and the two sets vary with it.
    """
    misses = 0
    for number in range(600):
        generator = torch.Generator().manual_seed(number)
        full = 2.0 + torch.randn(32, generator=generator, dtype=torch.float64)
        f: Any = SyntheticPairs(UNIVERSE, lambda kept: 1.0, n_pairs=32)
        f.full, f.empty = full, torch.zeros_like(full)
        noise = 0.3 * torch.randn(32, generator=generator, dtype=torch.float64)
        f._metrics[frozenset(UNIVERSE[:1])] = 0.4 * full + noise
        f._metrics[frozenset(UNIVERSE[:2])] = 0.1 * full
        (gap,) = measure_differences(
            f, [(frozenset(UNIVERSE[:1]), frozenset(UNIVERSE[:2]))], "test"
        )
        misses += gap.lowest_size(0.95) > 0.3
    assert 12 <= misses <= 50


def test_the_bounds_of_a_difference() -> None:
    gap = SetDifference(value=-0.3, error=0.05, n=32)
    assert gap.size == 0.3
    assert gap.lowest_size(0.95) == pytest.approx(0.3 - 1.6955 * 0.05, abs=1e-4)
    assert gap.highest_size(0.95) == pytest.approx(0.3 + 1.6955 * 0.05, abs=1e-4)
    assert SetDifference(value=0.01, error=0.05, n=32).lowest_size(0.95) == 0.0
    single = SetDifference(value=0.5, error=math.inf, n=1)
    assert (single.lowest_size(0.9), single.highest_size(0.9)) == (0.0, math.inf)
    assert not is_clear(single, 0.1, 0.95)
    constant = SetDifference(value=0.5, error=0.0, n=4)
    assert (constant.lowest_size(0.999), is_clear(constant, 0.1, 0.999)) == (0.5, True)
    assert simultaneous_confidence(50) == pytest.approx(0.999)


def test_above_the_bound_a_node_is_clear_if_it_is_so_simultaneously() -> None:
    """At 99% it is above, at 99.95% it is not."""
    gap = SetDifference(value=0.25, error=0.05, n=32)
    assert gap.lowest_size(0.995) > 0.1
    assert is_clear(gap, 0.1, 0.99)
    assert not is_clear(gap, 0.1, 0.9995)
    assert is_clear(SetDifference(value=0.02, error=0.02, n=32), 0.1, 0.9995)


@pytest.mark.parametrize(
    ("n_drawn", "n_unchecked", "n_found"), [(32, 8, 0), (32, 40, 0), (32, 40, 3), (10, 20, 2)]
)
def test_the_bound_on_unchecked_nodes_is_that_of_simulated_draws(
    n_drawn: int, n_unchecked: int, n_found: int
) -> None:
    nodes = grid(20, 10)
    drawn = tuple(nodes[:n_drawn])
    selection = NodeSelection((), drawn, tuple(nodes[n_drawn : n_drawn + n_unchecked]))
    bound = selection.bound_unchecked(set(drawn[:n_found]))
    most = draw_bound(n_drawn + n_unchecked, n_drawn, n_found)
    assert bound == pytest.approx((most - n_found) / n_unchecked, abs=2 / n_unchecked)


def test_the_bound_counts_opened_nodes() -> None:
    nodes = grid(20, 10)
    selection = NodeSelection((), tuple(nodes[:32]), tuple(nodes[32:132]))
    whole = selection.bound_unchecked(set())
    assert whole is not None
    n_beyond = round(whole * 100)
    opened = nodes[32:42]
    assert selection.bound_unchecked(set(), opened) == pytest.approx(n_beyond / 90)
    assert selection.bound_unchecked(set(opened[:2]), opened) == pytest.approx((n_beyond - 2) / 90)
    assert selection.bound_unchecked(set(), nodes[32:132]) is None
    assert NodeSelection(tuple(nodes[:5])).bound_unchecked(set()) is None


def test_of_more_than_64_nodes_32_by_effect_and_32_drawn() -> None:
    nodes = grid(20, 10)
    for count, n_unchecked in ((64, 0), (65, 1), (200, 136)):
        selection = select_nodes(nodes[:count], nodes[::-1], 0, "test")
        assert len(selection.unchecked) == n_unchecked
        everything = [*selection.by_effect, *selection.at_random, *selection.unchecked]
        assert sorted(everything) == nodes[:count]
        if n_unchecked:
            assert list(selection.by_effect) == nodes[:count][::-1][:32]
            assert len(selection.at_random) == 32
    weakest = select_nodes(nodes, nodes, 0, "test", smallest_effect=True)
    assert set(weakest.by_effect) == set(nodes[-32:])
    assert select_nodes(nodes, nodes, 0, "test") == select_nodes(nodes, nodes, 0, "test")
    assert select_nodes(nodes, nodes, 1, "test") != select_nodes(nodes, nodes, 0, "test")


def test_what_all_differences_share_is_taken_from_all_pairs() -> None:
    """Every set without A has A's noise; what B and C add has none."""
    f, _ = gaps_of([0.0])
    shared = torch.randn(100, generator=torch.Generator().manual_seed(3)).double()
    added = {UNIVERSE[1]: 0.02, UNIVERSE[2]: 0.05}

    def set_metric(sets: Any, label: str, pairs: int | None = None) -> torch.Tensor:
        rows = [
            0.1 * shared * (UNIVERSE[0] not in kept) + sum(v for u, v in added.items() if u in kept)
            for kept in sets
        ]
        return torch.stack([torch.as_tensor(row).expand(100)[:pairs] for row in rows])

    f.set_metric = set_metric
    whole, broken = f.everything, f.everything - {UNIVERSE[0]}
    sets = [(broken - {u}, whole - {u}) for u in added]
    on_few = measure_differences(f, sets, "test", 32, relative_to=(broken, whole))
    on_all = measure_differences(f, sets, "test")
    assert [d.value for d in on_few] == pytest.approx([d.value for d in on_all], abs=1e-9)
    assert [d.error for d in on_few] == pytest.approx([d.error for d in on_all], abs=1e-9)
    assert [d.n for d in on_few] == [32, 32]
    plain = measure_differences(f, sets, "test", 32)
    assert [d.value for d in plain] != pytest.approx([d.value for d in on_all], abs=1e-3)
    assert measure_differences(f, sets, "test", None, (broken, whole)) == on_all
