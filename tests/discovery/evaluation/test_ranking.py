"""How nodes are ranked by the effect that each has alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from discovery.evaluation import combine_directions, sort_by_effect
from discovery.methods.patching import NodeEffects
from discovery.sites import Node, head


def effects(direction: Any, values: Mapping[Node, float]) -> NodeEffects:
    return NodeEffects(
        direction, tuple(values), torch.zeros(1, len(values)), torch.tensor(list(values.values()))
    )


def test_ranking_combines_both_directions_and_breaks_ties_by_node() -> None:
    """An OR shows in denoising only; an opposing head counts by size; NaN counts as 0."""
    noising = effects(
        "noising",
        {
            head(0, 0): 0.004,
            head(0, 1): 0.0,
            head(1, 0): -0.3,
            head(1, 1): 0.5,
            head(1, 2): float("nan"),
        },
    )
    denoising = effects(
        "denoising",
        {head(0, 0): 0.004, head(0, 1): 0.9, head(1, 0): -0.2, head(1, 1): 0.0, head(1, 2): 0.015},
    )
    assert sort_by_effect(combine_directions(noising, denoising)) == [
        head(0, 1),
        head(1, 0),
        head(1, 1),
        head(1, 2),
        head(0, 0),
    ]


def test_the_first_ablation_that_shows_0_02_counts() -> None:
    """0.015 + 0.012 does not reach it; a node that only mean ablation shows comes after."""
    resample = {
        head(0, 0): (0.015, 0.012),
        head(0, 1): (0.0, 0.02),
        head(1, 0): (0.01, 0.0),
        head(1, 1): (0.0, 0.0),
    }
    mean = {
        head(0, 0): (0.0, 0.0),
        head(0, 1): (9.0, 9.0),
        head(1, 0): (float("inf"), -0.3),
        head(1, 1): (0.5, 0.0),
    }
    assert sort_by_effect(resample, mean) == [head(1, 1), head(1, 0), head(0, 1), head(0, 0)]
    assert sort_by_effect(resample) == [head(0, 0), head(0, 1), head(1, 0), head(1, 1)]
