"""One probe: a planted direction is found, and its controls say what they should."""

from __future__ import annotations

import numpy as np
import pytest

from discovery.methods.probes.classifier import (
    PENALTY_C,
    draw_controls,
    fit_direction,
    guess_from_tokens,
    guess_majority,
    predict,
    reduce_span,
    shuffle_labels,
    split_folds,
)
from tests.oracles.probes import fit_by_newton

N, D = 120, 20


def plant(seed: int, gap: float) -> tuple[np.ndarray, list[str], list[str], np.ndarray]:
    """Return activations, classes, templates and the direction in which the classes differ."""
    rng = np.random.default_rng(seed)
    unit = rng.standard_normal(D)
    unit /= np.linalg.norm(unit)
    signs = np.tile([1, -1], N // 2)
    activations = rng.standard_normal((N, D)) + gap * signs[:, None] * unit
    templates = [f"t{number // 20}" for number in range(N)]
    return activations, ["up" if sign > 0 else "down" for sign in signs], templates, unit


def test_a_planted_direction_is_found_and_the_control_fails() -> None:
    activations, classes, templates, unit = plant(seed=0, gap=2.0)
    folds = split_folds(classes, templates, seed=0)
    coordinates = reduce_span(activations)
    assert predict(coordinates, classes, folds).mean() > 0.9
    shuffled = [
        predict(coordinates, shuffle_labels(classes, templates, seed), folds).mean()
        for seed in range(5)
    ]
    assert np.mean(shuffled) < 0.6
    direction = fit_direction(activations, classes)
    assert direction.unit @ unit > 0.9  # from "down", the first class, to "up"
    plain, _, _, _ = plant(seed=1, gap=0.0)
    assert predict(reduce_span(plain), classes, folds).mean() < 0.65


def test_a_probe_in_the_span_is_the_plain_fit_in_the_full_space() -> None:
    activations, classes, templates, _ = plant(seed=2, gap=0.4)
    labels = np.array([name == "up" for name in classes]).astype(float)
    centred = activations - activations.mean(0)
    scaled = centred / np.sqrt((centred**2).mean())
    folds = split_folds(classes, templates, seed=3)
    expected = np.zeros(N, dtype=bool)
    for train, test in folds:
        weights, intercept = fit_by_newton(scaled[train], labels[train], PENALTY_C)
        expected[test] = (scaled[test] @ weights + intercept > 0) == (labels[test] == 1)
    right = predict(reduce_span(activations), classes, folds)
    assert 0.5 < right.mean() < 0.95  # some are wrong, so that the comparison can fail
    assert (right == expected).all()
    weights, _ = fit_by_newton(scaled, labels, PENALTY_C)
    unit = weights / np.linalg.norm(weights)
    assert fit_direction(activations, classes).unit == pytest.approx(unit, abs=1e-3)


def test_more_dimensions_than_examples_change_nothing() -> None:
    rng = np.random.default_rng(4)
    activations, classes, templates, _ = plant(seed=5, gap=0.6)
    turned, _ = np.linalg.qr(rng.standard_normal((300, 300)))
    wide = np.hstack([activations, np.zeros((N, 300 - D))]) @ turned
    folds = split_folds(classes, templates, seed=0)
    narrow = predict(reduce_span(activations), classes, folds)
    scale = np.sqrt(300 / D)  # of the root mean square, which the penalty refers to
    assert reduce_span(wide).shape[1] == D
    assert (predict(reduce_span(wide) / scale, classes, folds) == narrow).all()


def test_no_template_is_on_both_sides() -> None:
    _, classes, templates, _ = plant(seed=0, gap=1.0)
    folds = split_folds(classes, templates, seed=0)
    assert sorted(index for _, test in folds for index in test) == list(range(N))
    for train, test in folds:
        assert not {templates[index] for index in train} & {templates[index] for index in test}
    assert split_folds(classes, ["same"] * N, seed=0) == ()


def test_labels_are_shuffled_within_templates_or_between_them() -> None:
    _, classes, templates, _ = plant(seed=0, gap=1.0)
    shuffled = shuffle_labels(classes, templates, seed=1)
    assert shuffled != classes
    for name in set(templates):
        members = [index for index in range(N) if templates[index] == name]
        assert sorted(shuffled[i] for i in members) == sorted(classes[i] for i in members)
    pure = ["up" if int(name[1:]) % 2 else "down" for name in templates]
    orders = {tuple(shuffle_labels(pure, templates, seed)) for seed in range(10)}
    assert len(orders) > 3
    assert all(sorted(order) == sorted(pure) for order in orders)


def test_the_token_gives_away_only_what_it_was_seen_with() -> None:
    classes = ["a", "b"] * 4
    folds = ((np.arange(4), np.arange(4, 8)),)
    seen = guess_from_tokens([1, 2] * 4, classes, folds)
    assert seen.tolist() == [False] * 4 + [True] * 4
    unseen = guess_from_tokens([1, 2, 1, 2, 3, 4, 3, 4], classes, folds)
    assert unseen[4:].mean() == guess_majority(classes, folds)[4:].mean() == 0.5


def test_random_directions_have_the_variance_of_the_probes() -> None:
    activations, classes, _, _ = plant(seed=6, gap=0.5)
    activations = activations * np.linspace(0.2, 3.0, D)
    direction = fit_direction(activations, classes)
    controls = draw_controls(activations, direction, 20, seed=0)
    assert controls.kind == "equal variance"
    assert (controls.units == controls.reads).all()
    variances = (((activations - direction.mean) @ controls.units.T) ** 2).mean(0)
    assert variances == pytest.approx(np.full(20, direction.variance), rel=1e-6)
    assert np.linalg.norm(controls.units, axis=1) == pytest.approx(np.ones(20))
    assert np.abs(controls.units @ direction.unit).max() < 1e-6
    overlaps = np.abs(controls.units @ controls.units.T - np.eye(20))
    assert overlaps.max() < 0.999  # they differ from each other


def test_a_dominant_direction_is_compared_with_equal_displacements() -> None:
    activations, classes, _, _ = plant(seed=7, gap=6.0)
    direction = fit_direction(activations, classes)
    controls = draw_controls(activations, direction, 20, seed=0)
    assert controls.kind == "equal displacement"
    assert np.abs(controls.units @ direction.unit).max() < 1e-6
    centred = activations - direction.mean
    removed = np.linalg.norm(np.outer(centred @ direction.unit, direction.unit), axis=1)
    for v, r in zip(controls.units, controls.reads, strict=True):
        assert np.linalg.norm(np.outer(centred @ r, v), axis=1) == pytest.approx(removed)
