"""The max-statistic by hand, under its null, and at its edges."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest

from discovery.methods.significance import max_statistic


def exact(effects: np.ndarray) -> np.ndarray:
    """The same over every choice of signs, written out."""
    size = np.sqrt((effects**2).sum(0))
    own = np.abs(effects.sum(0)) / size
    largest = [
        max(abs(sum(s * x for s, x in zip(signs, effects[:, c], strict=True))) / size[c] for c in range(effects.shape[1]))
        for signs in itertools.product((1, -1), repeat=len(effects))
    ]
    return np.array([np.mean([value >= one - 1e-9 for value in largest]) for one in own])


def test_against_every_choice_of_signs() -> None:
    effects = np.random.default_rng(0).normal(size=(8, 3)) + np.array([1.5, 0.3, 0.0])
    assert max_statistic(effects, flips=20_000) == pytest.approx(exact(effects), abs=0.012)


def test_by_hand() -> None:
    """Three pairs of one sign: of eight choices of signs two are as large, so p is 1/4, whatever the size."""
    assert max_statistic(np.array([[2.0, 1e-6]] * 3), flips=40_000) == pytest.approx(0.25, abs=0.01)


def test_a_cell_among_many_is_found_and_noise_is_not() -> None:
    effects = np.random.default_rng(1).normal(size=(40, 200))
    effects[:, 7] += 1.2
    p = max_statistic(effects, flips=2000)
    assert p[7] < 0.01
    assert (np.delete(p, 7) <= 0.05).sum() <= 1


def test_under_the_null_one_grid_in_twenty_has_a_significant_cell() -> None:
    generator = np.random.default_rng(2)
    false = sum(max_statistic(generator.normal(size=(20, 30)), flips=400, seed=n).min() <= 0.05 for n in range(300))
    assert 5 <= false <= 28  # 15 expected, standard deviation 3.8


def test_nothing_and_missing_cells() -> None:
    effects = np.array([[0.0, np.nan, 1.0], [0.0, np.nan, 1.2], [0.0, np.nan, np.nan]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = max_statistic(effects, flips=500)
    assert p[0] == p[1] == 1.0
    assert 0 < p[2] < 1
    assert max_statistic(np.zeros((3, 0))).shape == (0,)
