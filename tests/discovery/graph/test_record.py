from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from discovery.graph import CircuitNode, Effect, Evaluation, ModelFacts, Score


@pytest.mark.parametrize("unknown", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_a_number_that_is_not_finite_is_unknown(unknown: float) -> None:
    assert Effect(mean=unknown, low=0.0).model_dump() == {"mean": None, "low": 0.0, "high": None}
    assert Evaluation(thresholds={"b": unknown}).thresholds == {"b": None}
    assert ModelFacts.model_validate({"added": [unknown]}).model_dump()["added"] == [None]


def test_numpy_numbers_are_numbers() -> None:
    score = Score(value=np.float32(0.5), low=np.float64(0.25), high=np.int64(1))  # type: ignore[arg-type]
    assert (
        score.model_dump_json()
        == '{"value":0.5,"low":0.25,"high":1.0,"median":null,"share_in_band":null}'
    )


def test_every_node_kind_is_filled_in_from_its_id() -> None:
    kinds = [
        (node.kind, node.layer, node.head, node.label)
        for node in map(CircuitNode.of, ("embed", "a3.h4", "m5", "logits"))
    ]
    assert kinds == [
        ("embed", None, None, "embed"),
        ("attention_head", 3, 4, "L3H4"),
        ("mlp", 5, None, "MLP5"),
        ("logits", None, None, "logits"),
    ]


@pytest.mark.parametrize(
    "wrong", [{"sign": 2}, {"positions": [{}]}, {"effect": 0.5}, {"evidence": "r1"}, {"layer": 1}]
)
def test_a_node_of_the_wrong_shape_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CircuitNode.of("a0.h0", **wrong)


def test_added_fields_are_kept_and_frozen_into_json() -> None:
    numbers = [1, 2]
    node = CircuitNode.of("m1", attention={"to": tuple(numbers)})
    assert node.model_dump()["attention"] == {"to": [1, 2]}
    with pytest.raises(TypeError, match="ndarray is not JSON"):
        CircuitNode.of("m1", grid=np.zeros((2, 2)))
