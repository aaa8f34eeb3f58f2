"""Statistical tests by their definitions, with every arrangement enumerated."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np


def sign_flip_by_enumeration(differences: Sequence[float]) -> float:
    """Return the share of all sign patterns whose mean is at least as far from 0."""
    observed = abs(sum(differences))
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    sums = [
        sum(sign * difference for sign, difference in zip(pattern, differences, strict=True))
        for pattern in patterns
    ]
    return sum(abs(total) >= observed - 1e-12 for total in sums) / len(patterns)


def max_statistic_by_enumeration(effects: np.ndarray) -> np.ndarray:
    """Return the p of each cell of a grid [pair cell] over every sign pattern."""
    scale = np.sqrt((effects**2).sum(0))
    observed = np.abs(effects.sum(0)) / scale
    largest = [
        max(
            abs(sum(sign * x for sign, x in zip(pattern, effects[:, cell], strict=True)))
            / scale[cell]
            for cell in range(effects.shape[1])
        )
        for pattern in itertools.product((1, -1), repeat=len(effects))
    ]
    return np.array([np.mean([value >= own - 1e-9 for value in largest]) for own in observed])


def hsic_by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """Return tr(K H L H) / n² with Gaussian kernels whose width is the median distance."""
    n = len(x)
    centring = np.eye(n) - 1 / n
    return float(np.trace(_kernel(x) @ centring @ _kernel(y) @ centring) / n**2)


def _kernel(values: np.ndarray) -> np.ndarray:
    distances = np.abs(values[:, None] - values)
    width = np.median(distances[np.triu_indices(len(values), 1)])
    return np.exp(-(distances**2) / (2 * width**2))
