from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from discovery.errors import StoreError
from discovery.graph import Effect
from discovery.graph.strict_json import dumps, loads, to_plain_json
from tests.discovery.graph.example import json_values


@given(json_values)
def test_what_is_json_comes_back(value: object) -> None:
    assert loads(dumps(value), "x") == value
    assert dumps(value).isascii()


def test_python_values_become_json() -> None:
    value = {
        "a": (1, 2),
        "n": np.int64(3),
        "x": np.float32(0.5),
        "t": np.bool_(True),
        "e": Effect(mean=float("nan")),
        "i": float("inf"),
    }
    assert json.loads(dumps(value)) == {
        "a": [1, 2],
        "n": 3,
        "x": 0.5,
        "t": True,
        "e": {"mean": None, "low": None, "high": None},
        "i": None,
    }


def test_a_torn_surrogate_can_be_written() -> None:
    assert loads(dumps("\ud83d"), "x") == "\ud83d"


@pytest.mark.parametrize("value", [np.zeros(2), {1, 2}, Path("x"), b"x", {1: "x"}, object()])
def test_what_is_not_json_is_a_bug(value: object) -> None:
    with pytest.raises(TypeError, match="JSON"):
        to_plain_json(value)


@pytest.mark.parametrize(
    "text", ["NaN", "[Infinity]", '{"a": -Infinity}', "1e400", "{", "", "[1,]", b"\xff", "9" * 5000]
)
def test_what_is_not_strict_is_refused_with_its_source(text: str | bytes) -> None:
    with pytest.raises(StoreError, match=r"^run\.json is damaged"):
        loads(text, "run.json")
