"""Conditions (c) and (d) by version 1 of the rules, recomputed from the weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.known_circuits.truth import load_truth
from benchmarks.random_models.tiny_models import as_task
from discovery.engine import Engine
from discovery.evaluation import Faithfulness, thresholds
from discovery.evaluation.version_1 import (
    find_contexts,
    is_complete,
    is_needed,
    measure_completeness,
    measure_minimality,
)
from discovery.graph import Completeness, Minimality
from tests.discovery.evaluation.synthetic import SyntheticFaithfulness
from tests.oracles.evaluation.faithfulness import nodes


@pytest.mark.parametrize("ablation", ["resample", "mean"])
@pytest.mark.parametrize("name", ["induction", "or_mlp", "or_softmax"])
def test_contexts_and_drops_are_what_the_weights_give(
    name: str, ablation: Any, load_case: Callable[[str], Any]
) -> None:
    """Each context is the best of ∅, the single nodes, and the best single node with a second one.

    One node that does nothing is in the circuit.
    """
    case = load_case(name)
    f = case.f(ablation)
    oracle = case.oracle(ablation)
    circuit = nodes(*load_truth(name).nodes) | nodes("a0.h1" if name != "or_softmax" else "a0.h2")
    contexts = find_contexts(f, circuit)
    assert set(contexts) == circuit
    for v, (context, drop) in contexts.items():
        other_nodes = sorted(circuit - {v})
        first = [frozenset[Any](), *(frozenset({w}) for w in other_nodes)]
        drops = {k: oracle.drop(circuit, k, v) for k in first}
        single = max(first[1:], key=lambda k: drops[k])
        drops |= {
            single | {x}: oracle.drop(circuit, single | {x}, v)
            for x in other_nodes
            if x not in single
        }
        assert v not in context
        assert context in drops
        assert drop == pytest.approx(max(drops.values()), abs=1e-4)
        assert drop == pytest.approx(drops[context], abs=1e-4)
    rows = measure_minimality(f, circuit, {v: k for v, (k, _) in contexts.items()}, 0)
    assert [row.node for row in rows] == [str(v) for v in sorted(circuit)]
    for row in rows:
        (v,) = nodes(row.node)
        assert row.drop == pytest.approx(oracle.drop(circuit, nodes(*row.context), v), abs=1e-4)
        assert is_needed(row) is (row.node in load_truth(name).nodes)


def test_a_node_with_a_backup_shows_once_the_backup_is_out() -> None:
    """OR of two, and of three: the context takes all but one of them out."""
    two = SyntheticFaithfulness(
        nodes("a0.h0", "a0.h1", "m0"), lambda kept: float("m0" in map(str, kept) and len(kept) > 1)
    )
    assert find_contexts(two, two.everything)[min(nodes("a0.h0"))] == (nodes("a0.h1"), 1.0)
    three = SyntheticFaithfulness(nodes("a0.h0", "a0.h1", "a0.h2"), lambda kept: float(bool(kept)))
    assert find_contexts(three, three.everything)[min(nodes("a0.h1"))] == (
        nodes("a0.h0", "a0.h2"),
        1.0,
    )


def test_the_smallest_context_wins_if_none_is_better() -> None:
    f = SyntheticFaithfulness(nodes("a0.h0", "a0.h1", "a0.h2"), lambda kept: len(kept) / 3)
    assert find_contexts(f, f.everything) == {
        v: (frozenset(), pytest.approx(1 / 3)) for v in f.everything
    }


def test_of_nothing_and_of_one() -> None:
    f = SyntheticFaithfulness(nodes("a0.h0", "a0.h1"), lambda kept: len(kept) / 2)
    assert find_contexts(f, frozenset()) == {}
    assert find_contexts(f, nodes("a0.h1")) == {min(nodes("a0.h1")): (frozenset(), 0.5)}


def test_minimality_is_null_if_f_is_null() -> None:
    assert (
        measure_minimality(
            SyntheticFaithfulness(nodes("m0"), len, is_defined=False),
            nodes("m0"),
            {min(nodes("m0")): frozenset()},
            0,
        )
        is None
    )


@pytest.mark.parametrize(
    ("drop", "p_holm", "holds"),
    [
        (0.02, 0.05, True),
        (0.0199, 0.001, False),
        (0.5, 0.051, False),
        (None, 0.0, False),
        (0.5, None, False),
    ],
)
def test_the_bounds_of_d(drop: float | None, p_holm: float | None, holds: bool) -> None:
    assert is_needed(Minimality(node="m0", drop=drop, p=p_holm, p_holm=p_holm)) is holds


@pytest.mark.parametrize("copies", [1, 2, 12])
def test_constant_data(copies: int, load_case: Callable[[str], Any]) -> None:
    """With copies of one pair, p is as small as so many signs allow; with a single pair it is 1."""
    case = load_case("induction")
    f = Faithfulness(
        Engine(case.model, as_task(case.task.discovery.pairs[:1] * copies)), "resample"
    )
    circuit = nodes(*load_truth("induction").nodes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = measure_minimality(f, circuit, dict.fromkeys(circuit, frozenset()), 0)
    for row in rows:
        assert row.p == pytest.approx(2 / 2**copies)
        assert row.p_holm == pytest.approx(min(1.0, 2 * row.p))
        assert row.drop > 0.5


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


def test_completeness_is_null_if_f_is_null() -> None:
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
