"""Condition (c): the gaps, recomputed from the weights; which nodes outside are tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.known_circuits.truth import load_truth
from discovery.evaluation import thresholds
from discovery.evaluation.completeness import (
    choose_outside_nodes,
    is_complete,
    measure_completeness,
    measure_gaps_in,
    measure_gaps_out,
)
from discovery.graph import Completeness
from discovery.sites import head
from tests.discovery.evaluation.synthetic import SyntheticFaithfulness
from tests.oracles.faithfulness import nodes


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
    assert (completeness.n_out, completeness.n_out_possible, completeness.chosen) == (
        len(outside),
        len(outside),
        None,
    )
    assert is_complete(completeness) is (
        max(inside.values()) <= 0.2 and max(outside.values()) <= 0.1
    )


@pytest.mark.parametrize("name", ["or_mlp", "backup"])
def test_half_of_an_or_is_not_complete(name: str, load_case: Callable[[str], Any]) -> None:
    """Faithful, and f with one input out is 0 where the model still works by the other."""
    case = load_case(name)
    redundant = {"or_mlp": "a1.h2", "backup": "a2.h0"}[name]
    f = case.f("resample")
    circuit = nodes(*load_truth(name).nodes) - nodes(redundant)
    assert float(f([circuit])[0]) > 0.8
    assert not is_complete(measure_completeness(f, circuit, [], 0))
    assert is_complete(measure_completeness(f, circuit | nodes(redundant), [], 0))


def test_null_where_f_is_null() -> None:
    assert (
        measure_completeness(
            SyntheticFaithfulness(nodes("a0.h0"), len, is_defined=False), nodes("a0.h0"), [], 0
        )
        is None
    )


def test_nothing_inside_or_nothing_outside() -> None:
    f = SyntheticFaithfulness(nodes("a0.h0", "m0"), lambda kept: len(kept) / 2)
    whole = measure_completeness(f, f.everything, [], 0)
    none = measure_completeness(f, frozenset(), [], 0)
    assert (whole.max_gap_in, whole.max_gap_out, whole.node_out, whole.n_out) == (0, 0, None, 0)
    assert (none.max_gap_in, none.node_in, none.max_gap_out, none.n_out) == (0, None, 0.5, 2)


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
        completeness = measure_completeness(f, circuit, screened, 0)
        assert (completeness.n_out, completeness.n_out_possible, completeness.chosen) == (
            64,
            len(outside),
            explanation,
        )


@pytest.mark.parametrize(
    ("inside", "out", "holds"),
    [
        (0.2, 0.1, True),
        (0.2001, 0.0, False),
        (0.0, 0.1001, False),
        (0.0, 0.0, True),
        (None, None, True),
    ],
)
def test_the_bounds_of_c(inside: float | None, out: float | None, holds: bool) -> None:
    assert (thresholds.MAX_GAP_IN, thresholds.MAX_GAP_OUT) == (0.2, 0.1)
    assert is_complete(Completeness(max_gap_in=inside, max_gap_out=out)) is holds
