"""The tests of Shi et al. by hand, under their nulls, and on a model whose circuit is known."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.known_circuits.hand_built import build_known_circuit
from discovery import load_model, load_task
from discovery.engine import Meter
from discovery.evaluation import SplitEvaluator
from discovery.evaluation.supplementary.hypothesis_tests import (
    equivalence_test,
    independence_test,
    inflation_test,
    run_hypothesis_tests,
)
from discovery.sites import Node, head
from tests.discovery.evaluation.synthetic import SyntheticFaithfulness
from tests.oracles.evaluation.statistics import hsic_by_definition


def p_of(found: Any) -> float:
    return float(found["p"])


def test_equivalence_counts_shares_not_sizes() -> None:
    """One large difference does not outweigh many small ones of the other sign."""
    result: Any = equivalence_test(np.array([100.0, -1, -1, -1, -1]), np.zeros(5), 0.0)
    assert result["share_above"] == 0.2
    assert result["p"] == pytest.approx(
        binom.sf(3, 5, 0.6) + binom.cdf(1, 5, 0.6)
    )  # at least four of one sign, P = 0.6


def test_ties_count_one_half() -> None:
    assert (
        equivalence_test(np.array([0.0, 1.0, 1e-5, -1.0]), np.zeros(4), 1e-4)["share_above"] == 0.5
    )
    assert equivalence_test(np.zeros(50), np.zeros(50), 1e-4) == {
        "share_above": 0.5,
        "n": 50,
        "margin": 0.1,
        "p": 1.0,
    }


def test_equivalence_rejects_what_is_always_below() -> None:
    always: Any = equivalence_test(np.full(60, -1.0), np.zeros(60), 1e-4)
    assert always["p"] < 1e-10


def test_equivalence_keeps_its_level_at_the_edge_of_the_null() -> None:
    generator = np.random.default_rng(0)
    draws = [np.where(generator.random(80) < 0.6, 1.0, -1.0) for _ in range(1500)]
    rejected = np.mean([p_of(equivalence_test(draw, np.zeros(80), 0.0)) <= 0.05 for draw in draws])
    assert rejected <= 0.06


def test_independence_finds_what_correlation_does_not() -> None:
    x = np.random.default_rng(1).normal(size=120)
    assert p_of(independence_test(x**2, x, 0)) <= 0.01
    assert abs(np.corrcoef(x**2, x)[0, 1]) < 0.3


def test_independence_of_what_is_independent() -> None:
    generator = np.random.default_rng(2)
    p = [
        p_of(independence_test(generator.normal(size=40), generator.normal(size=40), n))
        for n in range(60)
    ]
    assert np.mean([value <= 0.05 for value in p]) <= 0.15
    assert 0.3 < float(np.mean(p)) < 0.7


def test_hsic_by_definition() -> None:
    x = np.array([0.0, 1.0, 3.0, 4.0])
    y = np.array([1.0, 0.0, 2.0, 5.0])

    assert independence_test(x, y, 0)["hsic"] == pytest.approx(hsic_by_definition(x, y))


def test_constant_data_say_nothing_and_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert independence_test(np.zeros(20), np.arange(20.0), 0)["p"] == 1.0
        assert independence_test(np.zeros(1), np.ones(1), 0)["p"] == 1.0


def test_on_a_model_whose_circuit_is_known(tmp_path: Path) -> None:
    """Each node of the truth matters more than all bystanders; a bystander inside does not."""
    model = load_model(build_known_circuit("induction").save(tmp_path / "induction"), device="cpu")
    task = load_task(tmp_path / "induction" / "task.jsonl", model, pairs=60)
    evaluator = SplitEvaluator.of(
        model, task.discovery, "all", 0, metric=None, memory=None, meter=Meter()
    )
    nodes = model.info.nodes()
    truth = frozenset({Node.parse("a0.h2"), Node.parse("a1.h1")})
    tests: Any = run_hypothesis_tests(evaluator.f("resample"), truth, nodes, 0)
    rows = {row["node"]: row for row in tests["inflated_circuit"]["nodes"]}
    assert {name: row["share"] for name, row in rows.items()} == {"a0.h2": 1.0, "a1.h1": 1.0}
    extra = Node.parse("a1.h3")
    tests = run_hypothesis_tests(evaluator.f("resample"), truth | {extra}, nodes, 0)
    rows = {row["node"]: row for row in tests["inflated_circuit"]["nodes"]}
    assert rows["a1.h3"]["share"] < 0.9


def test_the_inflated_circuits_p_by_hand() -> None:
    """Ten bystanders change f by 0.01 to 0.10; A exceeds all of them, B four, and C none."""
    a, b, c, *bystanders = (head(0, h) for h in range(13))
    worth = {a: 0.5, b: 0.045, c: 0.001} | {v: 0.01 * n for n, v in enumerate(bystanders, 1)}
    f: Any = SyntheticFaithfulness([a, b, c, *bystanders], lambda kept: sum(worth[v] for v in kept))
    result: Any = inflation_test(f, frozenset({a, b, c}), bystanders, 0)
    p = [binom.cdf(10, 10, 0.9), binom.cdf(4, 10, 0.9), binom.cdf(0, 10, 0.9)]
    assert result["n"] == 10
    assert [(row["node"], row["share"]) for row in result["nodes"]] == [
        ("a0.h0", 1.0),
        ("a0.h1", 0.4),
        ("a0.h2", 0.0),
    ]
    assert [row["p"] for row in result["nodes"]] == pytest.approx(p)
    assert [row["p_holm"] for row in result["nodes"]] == pytest.approx([1.0, 2 * p[1], 3 * p[2]])
