"""Condition (d): contexts, drops, the sign-flip test and Holm's correction, each against a computation of its own."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.known_circuits.truth import load_truth
from benchmarks.random_models.tiny_models import as_task
from discovery.engine import Engine
from discovery.evaluation import Faithfulness
from discovery.evaluation.minimality import (
    find_contexts,
    holm,
    is_needed,
    measure_minimality,
    sign_flip_test,
)
from discovery.graph import Minimality
from tests.discovery.evaluation.synthetic import SyntheticFaithfulness
from tests.oracles.faithfulness import FaithfulnessOracle, nodes


def drop_by_hand(hand: FaithfulnessOracle, circuit: NodeSet, context: NodeSet, v: Any) -> float:
    with_v, without = hand.f(circuit - context, circuit - context - {v})
    return abs(with_v - without)


@pytest.mark.parametrize("ablation", ["resample", "mean"])
@pytest.mark.parametrize("name", ["induction", "or_mlp", "or_softmax"])
def test_contexts_and_drops_are_what_the_weights_give(
    name: str, ablation: Any, place: Callable[[str], Any]
) -> None:
    """With one bystander in: each context is the best of ∅ and the single nodes, or the best single one with a second added."""
    here = place(name)
    f, hand = here.f(ablation), here.hand(ablation)
    circuit = nodes(*load_truth(name).nodes) | nodes("a0.h1" if name != "or_softmax" else "a0.h2")
    found = find_contexts(f, circuit)
    assert set(found) == circuit
    for v, (context, drop) in found.items():
        others = sorted(circuit - {v})
        first = [frozenset[Any](), *(frozenset({w}) for w in others)]
        drops = {k: drop_by_hand(hand, circuit, k, v) for k in first}
        single = max(first[1:], key=lambda k: drops[k])
        drops |= {
            single | {x}: drop_by_hand(hand, circuit, single | {x}, v)
            for x in others
            if x not in single
        }
        assert v not in context
        assert context in drops
        assert drop == pytest.approx(max(drops.values()), abs=1e-4)
        assert drop == pytest.approx(drops[context], abs=1e-4)
    rows = measure_minimality(f, circuit, {v: k for v, (k, _) in found.items()}, 0)
    assert [row.node for row in rows] == [str(v) for v in sorted(circuit)]
    for row in rows:
        (v,) = nodes(row.node)
        assert row.drop == pytest.approx(
            drop_by_hand(hand, circuit, nodes(*row.context), v), abs=1e-4
        )
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


def test_the_smallest_context_wins_where_none_is_better() -> None:
    f = SyntheticFaithfulness(nodes("a0.h0", "a0.h1", "a0.h2"), lambda kept: len(kept) / 3)
    assert find_contexts(f, f.everything) == {
        v: (frozenset(), pytest.approx(1 / 3)) for v in f.everything
    }


def test_of_nothing_and_of_one() -> None:
    f = SyntheticFaithfulness(nodes("a0.h0", "a0.h1"), lambda kept: len(kept) / 2)
    assert find_contexts(f, frozenset()) == {}
    assert find_contexts(f, nodes("a0.h1")) == {min(nodes("a0.h1")): (frozenset(), 0.5)}


def test_null_where_f_is_null() -> None:
    assert (
        measure_minimality(
            SyntheticFaithfulness(nodes("m0"), len, is_defined=False),
            nodes("m0"),
            {min(nodes("m0")): frozenset()},
            0,
        )
        is None
    )


def by_enumeration(differences: list[float]) -> float:
    """The share of all sign patterns whose mean is at least as far from 0."""
    seen = abs(sum(differences))
    signs = list(itertools.product((1, -1), repeat=len(differences)))
    return sum(
        abs(sum(s * d for s, d in zip(row, differences, strict=True))) >= seen - 1e-12
        for row in signs
    ) / len(signs)


@pytest.mark.parametrize("n", range(1, 11))
def test_sign_flip_p_is_that_of_every_sign_pattern(n: int) -> None:
    rng = random.Random(n)
    for centre in (0.0, 0.5, -2.0):
        differences = [rng.gauss(centre, 1.0) for _ in range(n)]
        assert sign_flip_test(np.array(differences), 0) == pytest.approx(
            by_enumeration(differences)
        )
    assert sign_flip_test(np.ones(n), 0) == pytest.approx(min(1.0, 2 / 2**n))
    assert sign_flip_test(np.zeros(n), 0) == 1.0
    assert sign_flip_test(np.array([1.0, -1.0] * n), 0) == 1.0


def test_sign_flip_with_many_pairs_draws_ten_thousand() -> None:
    """No smaller p than 2/10001; the same seed gives the same p; near the enumeration where that is feasible."""
    rng = np.random.default_rng(0)
    assert sign_flip_test(rng.normal(1.0, 0.1, 60), 0) == pytest.approx(2 / 10001)
    some = rng.normal(0.25, 1.0, 16)
    assert sign_flip_test(some, 3) == sign_flip_test(some, 3)
    assert sign_flip_test(some, 3) == pytest.approx(by_enumeration(some.tolist()), abs=0.02)


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.04, 0.001, 0.02, 0.9], [0.08, 0.004, 0.06, 0.9]),
        ([0.5, 0.5, 0.5], [1.0, 1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
    ],
)
def test_holm(p: list[float], corrected: list[float]) -> None:
    assert holm(p) == pytest.approx(corrected)


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
def test_constant_data(copies: int, place: Callable[[str], Any]) -> None:
    """One pair again and again: drops as ever, p as small as so many signs allow, no warning; with a single pair p is 1."""
    here = place("induction")
    f = Faithfulness(
        Engine(here.model, as_task(here.task.discovery.pairs[:1] * copies)), "resample"
    )
    circuit = nodes(*load_truth("induction").nodes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = measure_minimality(f, circuit, dict.fromkeys(circuit, frozenset()), 0)
    for row in rows:
        assert row.p == pytest.approx(2 / 2**copies)
        assert row.p_holm == pytest.approx(min(1.0, 2 * row.p))
        assert row.drop > 0.5
