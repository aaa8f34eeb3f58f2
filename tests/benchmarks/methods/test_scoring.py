"""Scores of answers, by hand."""

from __future__ import annotations

import pytest

from benchmarks.methods.scoring import MethodResult, MethodScores, auc, f1
from discovery.sites import Node
from tests.oracles.faithfulness import nodes


def test_auc_by_hand() -> None:
    scores = {
        Node.parse(name): value
        for name, value in (("a0.h0", 3.0), ("a0.h1", 2.0), ("a0.h2", 2.0), ("a0.h3", 1.0))
    }
    assert auc(scores, nodes("a0.h0")) == 1.0
    assert auc(scores, nodes("a0.h1")) == pytest.approx((0 + 0.5 + 1) / 3)
    assert auc(scores, nodes("a0.h3")) == 0.0
    assert auc(scores, nodes()) is None


def test_a_tally_counts_what_is_missing_and_what_is_too_much() -> None:
    tally = MethodScores()
    tally.add("one", MethodResult(nodes("a0.h0", "a0.h1"), {}, 10.0), [nodes("a0.h0", "a1.h0")])
    tally.add("two", MethodResult(nodes("a0.h0"), {}, 30.0), [nodes("a0.h0")])
    tally.add("none", MethodResult(nodes(), {}, 20.0, verdict="no_behaviour"), [nodes("a0.h0")])
    assert tally.precision == [0.5, 1.0, 0.0]
    assert tally.recall == [0.5, 1.0, 0.0]
    assert tally.exact == [False, True, False]
    row = tally.format_row("ours", "+0.1")
    assert "| 0.333 (0.008–0.906) |" in row, "Clopper–Pearson of 1 in 3"
    assert row.startswith("| ours | 3 |")
    assert row.endswith("| – | +0.1 | – | 20 | – |\n"), (
        "no ranking, no AUC; costs: none, the mean, none"
    )
    assert tally.mistakes[1] == "none (no_behaviour): missing ['a0.h0'], beside it []"


def test_of_several_truths_the_nearest_counts() -> None:
    tally = MethodScores()
    scores = dict(zip(sorted(nodes("a0.h0", "a0.h1", "a0.h2")), (3.0, 2.0, 1.0), strict=True))
    optima = [nodes("a0.h1", "a0.h2"), nodes("a0.h0", "a0.h1")]
    assert tally.add("one", MethodResult(nodes("a0.h0", "a0.h1"), scores, 1.0), optima) == optima[1]
    assert (tally.exact, tally.auc, tally.prefix_hits, tally.best_f1) == (
        [True],
        [1.0],
        [True],
        [1.0],
    )
    assert tally.add("other", MethodResult(nodes("a0.h2"), scores, 1.0), optima) == optima[0]
    assert tally.auc == [1.0, 1.0], "a ranking is held against the truth that it fits best"


def test_f1_by_hand() -> None:
    assert f1(nodes("a0.h0", "a0.h1"), nodes("a0.h0", "a0.h2", "a0.h3")) == pytest.approx(
        2 * 0.5 * (1 / 3) / (0.5 + 1 / 3)
    )
    assert f1(nodes(), nodes("a0.h0")) == 0.0
