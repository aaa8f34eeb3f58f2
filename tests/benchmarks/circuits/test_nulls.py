"""Pairs that show no behaviour, and verdicts without (f)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from benchmarks.circuits.nulls import (
    corrupt_irrelevant_token,
    reverse_answers,
    shuffle_answers,
    verdict_without_f,
)
from discovery.engine.cost import MeasurementCost
from discovery.evaluation import CircuitEvaluation
from discovery.graph import Conditions, Evaluation, OutcomeByAblation
from discovery.tasks.task import EncodedPair


def test_nulls_change_what_they_say_and_nothing_else() -> None:
    pairs = [
        EncodedPair(
            clean=(1, n, 9, 2),
            corrupted=(1, 30 + n, 9, 2),
            answer=(5,),
            wrong=(6,),
            template="t",
            labels={"subject": 1, "end": 3},
        )
        for n in range(10, 20)
    ]
    pairs += [
        EncodedPair(
            clean=(1, 25, 8, 2),
            corrupted=(1, 26, 8, 2),
            answer=(5,),
            wrong=(6,),
            template="t",
            labels={"subject": 1, "end": 3},
        )
    ]
    changed = corrupt_irrelevant_token(pairs[0], random.Random(0), pairs)
    assert changed.corrupted == (1, 10, 8, 2), (
        "the one word without a label that another prompt of the template has"
    )
    assert (changed.clean, changed.answer) == (pairs[0].clean, pairs[0].answer)
    reversed_pair = reverse_answers(pairs[0], random.Random(0), pairs)
    assert (reversed_pair.answer, reversed_pair.wrong) == ((6,), (5,))
    shuffled = [
        shuffle_answers(pair, random.Random(n), pairs).answer for n, pair in enumerate(pairs * 20)
    ]
    assert 70 < shuffled.count((6,)) < 150


@pytest.mark.parametrize(
    ("outcomes", "verdict", "expected"),
    [
        ({}, "partial", "verified"),
        ({"c": "fails"}, "partial", "partial"),
        ({"a": "undecided"}, "inconclusive", "inconclusive"),
        ({"e": "fails"}, "rejected", "rejected"),
        ({}, "inconclusive", "inconclusive"),
    ],
)
def test_a_given_set_counts_as_verified_if_all_but_f_holds(
    outcomes: Any, verdict: Any, expected: str
) -> None:
    outcomes_by_condition = {
        name: OutcomeByAblation(resample="holds", mean=outcomes.get(name, "holds"))
        for name in "abcde"
    }
    conditions = Conditions(
        **outcomes_by_condition, f=OutcomeByAblation(resample="not_run", mean="not_run")
    )
    evaluation = CircuitEvaluation(
        nodes=(),
        evaluation=Evaluation(conditions=conditions),
        verdict=verdict,
        reasons=(),
        cost=MeasurementCost(0.0, 0.0),
    )
    assert verdict_without_f(evaluation) == expected
