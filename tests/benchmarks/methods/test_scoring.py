"""Scores of results, by hand."""

from __future__ import annotations

import pytest

from benchmarks.methods.scoring import MethodResult, MethodScores, auc, f1
from discovery.sites import Node
from tests.oracles.evaluation.faithfulness import nodes


def test_auc_by_hand() -> None:
    scores = {
        Node.parse(name): value
        for name, value in (("a0.h0", 3.0), ("a0.h1", 2.0), ("a0.h2", 2.0), ("a0.h3", 1.0))
    }
    assert auc(scores, nodes("a0.h0")) == 1.0
    assert auc(scores, nodes("a0.h1")) == pytest.approx((0 + 0.5 + 1) / 3)
    assert auc(scores, nodes("a0.h3")) == 0.0
    assert auc(scores, nodes()) is None


def test_missing_and_extra_nodes_are_counted() -> None:
    tally = MethodScores()
    truth = nodes("a0.h0")
    two_nodes = MethodResult(circuit=nodes("a0.h0", "a0.h1"), scores={}, circuit_cost=10.0)
    one_node = MethodResult(circuit=nodes("a0.h0"), scores={}, circuit_cost=30.0)
    no_node = MethodResult(circuit=nodes(), scores={}, circuit_cost=20.0, verdict="no_behaviour")
    tally.add("two", two_nodes, [nodes("a0.h0", "a1.h0")])
    tally.add("one", one_node, [truth])
    tally.add("none", no_node, [truth])
    assert tally.precision == [0.5, 1.0, 0.0]
    assert tally.recall == [0.5, 1.0, 0.0]
    assert tally.exact == [False, True, False]
    row = tally.format_row("ours", "+0.1")
    assert "| 0.333 (0.008–0.906) |" in row, "Clopper–Pearson of 1 in 3"
    assert row.startswith("| ours | 3 |")
    assert row.endswith("| – | +0.1 | – | 20 | – |\n"), (
        "without a ranking there is no AUC; of the costs only the circuit's is known"
    )
    assert tally.mistakes[1] == "none (no_behaviour): missing ['a0.h0'], beside it []"


def test_of_several_truths_the_nearest_counts() -> None:
    tally = MethodScores()
    scores = dict(zip(sorted(nodes("a0.h0", "a0.h1", "a0.h2")), (3.0, 2.0, 1.0), strict=True))
    optima = [nodes("a0.h1", "a0.h2"), nodes("a0.h0", "a0.h1")]
    result = MethodResult(circuit=nodes("a0.h0", "a0.h1"), scores=scores, circuit_cost=1.0)
    assert tally.add("one", result, optima) == optima[1]
    assert tally.exact == [True]
    assert tally.auc == [1.0]
    assert tally.prefix_hits == [True]
    assert tally.best_f1 == [1.0]
    result = MethodResult(circuit=nodes("a0.h2"), scores=scores, circuit_cost=1.0)
    assert tally.add("other", result, optima) == optima[0]
    assert tally.auc == [1.0, 1.0], "a ranking is compared with the truth that it fits best"


def test_f1_by_hand() -> None:
    assert f1(nodes("a0.h0", "a0.h1"), nodes("a0.h0", "a0.h2", "a0.h3")) == pytest.approx(
        2 * 0.5 * (1 / 3) / (0.5 + 1 / 3)
    )
    assert f1(nodes(), nodes("a0.h0")) == 0.0
