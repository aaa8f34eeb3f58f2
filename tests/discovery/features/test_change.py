"""Changes of features that are refused."""

from __future__ import annotations

import pytest

from discovery.errors import FeatureError
from discovery.features import FeatureChange


@pytest.mark.parametrize(
    ("amounts", "operation", "message"),
    [
        ({}, "set", "No feature"),
        ({20: 1.0}, "set", "0 to 19"),
        ({-1: 1.0}, "set", "0 to 19"),
        ({True: 1.0}, "set", "0 to 19"),
        ({"3": 1.0}, "set", "0 to 19"),
        ({3: float("nan")}, "set", "finite"),
        ({3: "much"}, "set", "finite"),
        ({3: True}, "set", "finite"),
        ([3], "set", "The change is"),
        ({3: 1.0}, "clamp", "set, scale, add"),
    ],
)
def test_wrong_changes_are_refused(amounts, operation, message):
    with pytest.raises(FeatureError, match=message):
        FeatureChange.of(amounts, operation, 20)
