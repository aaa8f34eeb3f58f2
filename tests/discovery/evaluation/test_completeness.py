"""Condition (c): the gaps, recomputed from the weights; nodes, blocks and bounds.

Nodes that were not checked one by one, and the intervals, are compared with an evaluation of all
nodes on all pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.known_circuits.truth import load_truth
from discovery.evaluation.completeness import (
    choose_outside_nodes,
    has_small_gaps,
    measure_completeness,
    measure_gaps_in,
    measure_gaps_out,
)
from discovery.evaluation.verdict.version_2 import decide_completeness
from discovery.graph import BySide, Completeness
from discovery.methods.ablation import NodeSet
from discovery.sites import Node, head
from tests.discovery.evaluation.synthetic import SyntheticFaithfulness, SyntheticPairs
from tests.oracles.evaluation.condition_rules import ConditionOracle
from tests.oracles.evaluation.faithfulness import nodes


@pytest.mark.parametrize("ablation", ["resample", "mean"])
@pytest.mark.parametrize(
    ("name", "left_out"),
    [("induction", 0), ("or_mlp", 0), ("or_mlp", 1), ("induction_layernorm", 1)],
)
def test_gaps_are_what_the_weights_give(
    name: str, left_out: int, ablation: Any, load_case: Callable[[str], Any]
) -> None:
    case = load_case(name)
    f = case.f(ablation)
    oracle = case.oracle(ablation)
    circuit = nodes(*load_truth(name).nodes[: len(load_truth(name).nodes) - left_out])
    everything = f.everything
    inside = {
        u: abs(a - b) for u in circuit for a, b in [oracle.f(circuit - {u}, everything - {u})]
    }
    outside = {
        v: abs(a - b) for v in everything - circuit for a, b in [oracle.f(circuit | {v}, circuit)]
    }
    assert measure_gaps_in(f, circuit) == pytest.approx(inside, abs=1e-4)
    assert measure_gaps_out(f, circuit, sorted(outside)) == pytest.approx(outside, abs=1e-4)
    completeness = measure_completeness(f, circuit, [], 0)
    assert completeness.max_gap_in == pytest.approx(max(inside.values()), abs=1e-4)
    assert completeness.max_gap_out == pytest.approx(max(outside.values()), abs=1e-4)
    assert inside[min(nodes(completeness.node_in))] == pytest.approx(max(inside.values()), abs=1e-4)
    assert outside[min(nodes(completeness.node_out))] == pytest.approx(
        max(outside.values()), abs=1e-4
    )
    assert completeness.checked == BySide(inside=len(inside), outside=len(outside))
    assert completeness.unchecked == BySide(inside=0, outside=0)
    assert completeness.unchecked_bound == BySide(inside=None, outside=None)
    assert completeness.blocks is None
    is_small = max(inside.values()) <= 0.2 and max(outside.values()) <= 0.1
    assert (decide_completeness(completeness) == "holds") is is_small


@pytest.mark.parametrize("name", ["or_mlp", "backup"])
def test_half_of_an_or_is_not_complete(name: str, load_case: Callable[[str], Any]) -> None:
    """Faithful, and f with one input out is 0 where the model still works by the other."""
    case = load_case(name)
    redundant = {"or_mlp": "a1.h2", "backup": "a2.h0"}[name]
    f = case.f("resample")
    circuit = nodes(*load_truth(name).nodes) - nodes(redundant)
    assert float(f([circuit])[0]) > 0.8
    assert decide_completeness(measure_completeness(f, circuit, [], 0)) == "fails"
    whole = measure_completeness(f, circuit | nodes(redundant), [], 0)
    assert decide_completeness(whole) == "holds"


def test_null_if_f_is_null() -> None:
    assert (
        measure_completeness(
            SyntheticFaithfulness(nodes("a0.h0"), len, is_defined=False), nodes("a0.h0"), [], 0
        )
        is None
    )


def test_nothing_inside_or_nothing_outside() -> None:
    f: Any = SyntheticPairs(nodes("a0.h0", "m0"), lambda kept: len(kept) / 2)
    whole = measure_completeness(f, f.everything, [], 0)
    none = measure_completeness(f, frozenset(), [], 0)
    assert (whole.max_gap_in, whole.max_gap_out, whole.node_out) == (0, 0, None)
    assert whole.checked == BySide(inside=2, outside=0)
    assert (none.max_gap_in, none.node_in, none.max_gap_out) == (0, None, 0.5)
    assert none.checked == BySide(inside=0, outside=2)


def test_of_more_than_64_outside_32_strongest_and_32_at_random() -> None:
    universe = [head(layer, index) for layer in range(10) for index in range(10)]
    f = SyntheticFaithfulness(frozenset(universe), lambda kept: len(kept) / 100)
    screened = universe[::-1]
    for size, all_of_them in ((36, True), (35, False), (10, False)):
        circuit = frozenset(universe[-size:])
        outside = set(universe) - circuit
        tried, explanation = choose_outside_nodes(f, circuit, screened, 0)
        assert len(tried) == len(set(tried))
        assert set(tried) <= outside
        assert tried == sorted(tried)
        if all_of_them:
            assert set(tried) == outside
            assert explanation is None
            continue
        strongest = [node for node in screened if node in outside][:32]
        assert len(tried) == 64
        assert set(strongest) <= set(tried)
        assert explanation == "the 32 of largest screened effect and 32 at random"
        assert choose_outside_nodes(f, circuit, screened, 0)[0] == tried
        assert choose_outside_nodes(f, circuit, screened, 1)[0] != tried


@pytest.mark.parametrize(
    ("gaps", "lows", "outcome"),
    [
        ((0.2, 0.1), (0.2, 0.1), "holds"),
        ((0.0, 0.0), (0.0, 0.0), "holds"),
        ((0.2001, 0.0), (0.1, 0.0), "undecided"),
        ((0.2001, 0.0), (0.2, 0.0), "undecided"),
        ((0.25, 0.0), (0.2001, 0.0), "fails"),
        ((0.0, 0.1001), (0.0, 0.05), "undecided"),
        ((0.0, 0.15), (0.0, 0.1001), "fails"),
        ((0.25, 0.15), (0.1, 0.1001), "fails"),
        ((0.25, 0.15), (0.1, 0.05), "undecided"),
    ],
)
def test_the_bounds_of_c(
    gaps: tuple[float, float], lows: tuple[float, float], outcome: str
) -> None:
    """It fails by a lower bound, holds by point values, and is undecided between the two."""
    completeness = Completeness(
        max_gap_in=gaps[0], max_gap_out=gaps[1], low=BySide(inside=lows[0], outside=lows[1])
    )
    assert decide_completeness(completeness) == outcome


def grid(layers: int, heads: int) -> list[Node]:
    return [head(layer, index) for layer in range(layers) for index in range(heads)]


def additive(effects: dict[Node, float]) -> Callable[[NodeSet], float]:
    """f of a set: the sum of the effects of its nodes."""
    return lambda kept: sum(effects.get(node, 0.0) for node in kept)


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.8])
def test_few_pairs_agree_with_all_pairs(noise: float) -> None:
    """Every gap above its limit is measured on all pairs, and the outcome is that of all pairs."""
    universe = grid(4, 8)
    circuit = frozenset(universe[:10])
    effects = dict.fromkeys(circuit, 0.1) | {universe[20]: 0.13, universe[21]: -0.09}
    f: Any = SyntheticPairs(universe, additive(effects), n_pairs=100, noise=noise)
    oracle = ConditionOracle(f.everything, lambda kept: f.metric(kept).tolist())
    measured = measure_completeness(f, circuit, universe, 0)
    gaps_in = oracle.gaps_in(circuit)
    gaps_out = oracle.gaps_out(circuit)
    if noise < 0.5:
        assert measured.max_gap_in == pytest.approx(max(gaps_in.values()), abs=0.05 * noise + 1e-9)
    assert measured.max_gap_out == pytest.approx(max(gaps_out.values()), abs=0.1 * noise + 1e-9)
    n_tests = len(universe)
    lows = [oracle.low_of_gap(circuit | {v}, circuit, n_tests) for v in gaps_out]
    assert measured.low.outside == pytest.approx(max(lows), abs=0.05 * noise + 1e-9)
    expected = "fails" if max(lows) > 0.1 else "undecided"
    assert decide_completeness(measured) == expected
    if noise == 0:
        assert measured.failing == (str(universe[20]),)
        assert (measured.refined.inside, measured.refined.outside) == (8, 8), "the nearest ones"
        assert f.cost < 0.75 * 100 * len(f.pairs_of)


def test_unchecked_nodes_are_added_in_blocks_and_bounded() -> None:
    """A node that no check would have seen is found, since its block changes f."""
    universe = grid(20, 10)
    circuit = frozenset(universe[:10])
    ranking = universe
    f: Any = SyntheticPairs(universe, additive(dict.fromkeys(circuit, 0.1)))
    quiet = measure_completeness(f, circuit, ranking, 0)
    assert quiet.checked == BySide(inside=10, outside=64)
    assert quiet.unchecked == BySide(inside=0, outside=126)
    assert quiet.unchecked_bound.outside == pytest.approx(0.104, abs=0.02)
    assert (quiet.blocks.n, quiet.blocks.size, quiet.blocks.opened) == (32, 8, 0)
    checked = choose_outside_nodes(f, circuit, ranking, 0)[0]
    hidden = next(v for v in reversed(universe) if v not in checked)
    effects = dict.fromkeys(circuit, 0.1) | {hidden: 0.12}
    loud: Any = SyntheticPairs(universe, additive(effects))
    found = measure_completeness(loud, circuit, ranking, 0)
    assert (found.max_gap_out, found.node_out) == (pytest.approx(0.12 / 1.12), str(hidden))
    assert found.blocks.opened == 2, "one block of each partition"
    assert found.checked.outside + found.unchecked.outside == 190
    assert 64 + 8 < found.checked.outside <= 64 + 16
    assert decide_completeness(found) == "fails"


def test_nodes_that_cancel_in_a_block_are_apart_in_the_other_partition() -> None:
    universe = grid(20, 10)
    circuit = frozenset(universe[:10])
    n_found = 0
    for number in range(8):
        first, second = universe[60 + 7 * number % 130], universe[61 + 11 * number % 130]
        if first == second:
            continue
        effects = dict.fromkeys(circuit, 0.1) | {first: 0.3, second: -0.3}
        f: Any = SyntheticPairs(universe, additive(effects))
        n_found += measure_completeness(f, circuit, universe, number).max_gap_out > 0.25
    assert n_found == 8


def test_small_effects_of_one_sign_are_added_together() -> None:
    """No node is above its limit, and 30 of them are above 0.2 together."""
    universe = grid(6, 10)
    circuit = frozenset(universe[:10])
    effects = dict.fromkeys(circuit, 0.1)
    effects |= dict.fromkeys(universe[10:40], 0.01) | dict.fromkeys(universe[40:45], -0.02)
    f: Any = SyntheticPairs(universe, additive(effects))
    measured = measure_completeness(f, circuit, universe, 0)
    assert decide_completeness(measured) == "holds"
    assert (measured.joint_positive.n, measured.joint_negative.n) == (30, 5)
    assert measured.joint_positive.change == pytest.approx(0.3 / 1.2)
    assert measured.joint_negative.change == pytest.approx(-0.1 / 1.2)


def test_the_check_that_ends_early_agrees_with_the_gaps() -> None:
    universe = grid(4, 8)
    circuit = frozenset(universe[:10])
    for changed, expected in (
        ({}, True),
        ({universe[30]: 0.12}, False),
        ({universe[30]: 0.09}, True),
    ):
        f: Any = SyntheticPairs(universe, additive(dict.fromkeys(circuit, 0.1) | changed))
        assert has_small_gaps(f, circuit, universe, 0) is expected
