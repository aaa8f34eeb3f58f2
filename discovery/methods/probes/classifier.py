"""One linear probe: logistic regression, tested on templates that it was not trained on.

Activations are centred and divided by one number, the root mean square of their entries, so that
the penalty means the same at every layer. The fit is scikit-learn's, with an L2 penalty. Such a fit
does not change under rotations, and its weights lie in the span of the training activations; it is
therefore computed in that span, which is exact and fast if there are fewer prompts than dimensions.

Controls: the same probe with shuffled labels, and the best guess from the token at the position
alone. Labels are shuffled within each template, or, if each template has a single class, whole
templates exchange theirs. Selectivity is the accuracy minus that with shuffled labels (after Hewitt
& Liang 2019, arXiv 1909.03368).
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

MAX_FOLDS = 5
PENALTY_C = 0.1
"""The inverse strength of the L2 penalty. It is fixed, so that nothing is tuned on test prompts."""

MAX_ITERATIONS = 500

MIN_VARIANCE_RATIO = 2.0  # of the largest variance beside a direction, for controls by variance

Array = np.ndarray
ControlKind = Literal["equal variance", "equal displacement"]
Folds = tuple[tuple[Array, Array], ...]


@dataclass(frozen=True, kw_only=True)
class Direction:
    """A direction in activation space that a probe of two classes reads.

    Attributes:
        unit: the unit vector, from the first class to the second, [d_model].
        mean: the mean of the training activations, [d_model].
        variance: the variance of the training activations along it.
    """

    unit: Array
    mean: Array
    variance: float


def split_folds(classes: Sequence[str], groups: Sequence[str], seed: int) -> Folds:
    """Return the training and test examples of each fold, so that no group is on both sides.

    A fold whose training examples have one class only is left out; there may be no fold.

    Args:
        classes: the class of each example.
        groups: the template of each example or, if all have the same, the pair it belongs to.
        seed: the seed of the division.
    """
    labels = np.array(classes)
    n_groups = len(set(groups))
    if n_groups < 2:
        return ()
    grouped = StratifiedGroupKFold(min(MAX_FOLDS, n_groups), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer examples than folds is possible here, and the fold is left out below.
        warnings.simplefilter("ignore", UserWarning)
        folds = tuple(grouped.split(labels, labels, np.array(groups)))
    return tuple(
        (train, test) for train, test in folds if len(set(labels[train])) > 1 and len(test)
    )


def shuffle_labels(classes: Sequence[str], templates: Sequence[str], seed: int) -> list[str]:
    """Return the classes in another order, which is random within each template.

    If each template has a single class, that would change nothing, and the templates exchange
    their classes instead.
    """
    rng = np.random.default_rng(seed)
    members = defaultdict(list)
    for index, template in enumerate(templates):
        members[template].append(index)
    shuffled = list(classes)
    if all(len({classes[index] for index in indices}) == 1 for indices in members.values()):
        names = sorted(members)
        for name, other in zip(names, rng.permutation(names), strict=True):
            for index in members[name]:
                shuffled[index] = classes[members[str(other)][0]]
        return shuffled
    for indices in members.values():
        order = rng.permutation(indices)
        for target, source in zip(indices, order, strict=True):
            shuffled[target] = classes[source]
    return shuffled


def reduce_span(activations: Array) -> Array:
    """Return the activations [example d] as coordinates in their own span [example rank].

    They are centred and divided by the root mean square of their entries. Nothing about the labels
    enters.
    """
    centred = activations - activations.mean(0)
    scale = np.sqrt((centred**2).mean())
    if scale == 0:
        return np.zeros((len(activations), 1))
    left, sizes, _ = np.linalg.svd(centred / scale, full_matrices=False)
    kept = sizes > sizes[0] * 1e-10
    reduced: Array = left[:, kept] * sizes[kept]
    return reduced


def predict(coordinates: Array, classes: Sequence[str], folds: Folds) -> Array:
    """Return which test examples a probe gets right in their fold; False if they are in none."""
    labels = np.array(classes)
    right = np.zeros(len(labels), dtype=bool)
    for train, test in folds:
        fitted = _fit(coordinates[train], labels[train])
        right[test] = fitted.predict(coordinates[test]) == labels[test]
    return right


def guess_from_tokens(tokens: Sequence[int], classes: Sequence[str], folds: Folds) -> Array:
    """Return which test examples the token at the position gives away.

    The guess is the most frequent class of the token in the training examples; for a token that is
    not among them, the most frequent class of all.
    """
    right = np.zeros(len(classes), dtype=bool)
    for train, test in folds:
        by_token: dict[int, Counter[str]] = defaultdict(Counter)
        overall = Counter(classes[index] for index in train)
        for index in train:
            by_token[tokens[index]][classes[index]] += 1
        for index in test:
            counts = by_token.get(tokens[index]) or overall
            right[index] = counts.most_common(1)[0][0] == classes[index]
    return right


def guess_majority(classes: Sequence[str], folds: Folds) -> Array:
    """Return which test examples the most frequent class of the training examples gets right."""
    return guess_from_tokens([0] * len(classes), classes, folds)


def tested_examples(folds: Folds, count: int) -> Array:
    """Return which examples are tested in some fold."""
    tested = np.zeros(count, dtype=bool)
    for _, test in folds:
        tested[test] = True
    return tested


def fit_direction(activations: Array, classes: Sequence[str]) -> Direction:
    """Return the direction that a probe of two classes reads in activations [example d]."""
    mean = activations.mean(0)
    centred = activations - mean
    scale = np.sqrt((centred**2).mean())
    fitted = _fit(centred / scale, np.array(classes))
    unit = fitted.coef_[0] / np.linalg.norm(fitted.coef_[0])
    return Direction(unit=unit, mean=mean, variance=float(((centred @ unit) ** 2).mean()))


@dataclass(frozen=True, kw_only=True)
class ControlDirections:
    """Random directions that the removal of a direction is compared with.

    The activation x becomes x − v·rᵀ(x − μ) for each unit vector v and what it reads, r.

    Attributes:
        units: v of each control [control d].
        reads: r of each control [control d]: v itself, or the probe's direction.
        kind: "equal variance" if as much variance is removed along v, "equal displacement" if the
            activation moves along v as far as the removal moves it along the probe's direction.
    """

    units: Array
    reads: Array
    kind: ControlKind


def draw_controls(
    activations: Array, direction: Direction, count: int, seed: int
) -> ControlDirections:
    """Draw random directions, orthogonal to a direction, that are changed as much as it.

    A direction that overlaps with the probe's would share its effect, and all directions of large
    variance overlap with a dominant one. So they are drawn in its orthogonal complement. In the
    basis of principal components there, with variances λ, a random vector g is tilted to λ^a·g. The
    variance along it grows with a, so bisection finds the a that gives the wanted variance. If no
    direction there has at least twice that variance, there is little to draw from; then the
    controls move the activation as far as the removal does, and remove nothing.

    Args:
        activations: the activations [example d].
        direction: the direction whose removal is controlled.
        count: how many to draw.
        seed: the seed of the draws.
    """
    rng = np.random.default_rng(seed)
    centred = activations - direction.mean
    others = centred - np.outer(centred @ direction.unit, direction.unit)
    _, sizes, components = np.linalg.svd(others, full_matrices=False)
    kept = sizes > max(float(sizes[0]), 1e-30) * 1e-8
    variances = sizes[kept] ** 2 / len(activations)
    basis = components[kept]
    draws = rng.standard_normal((count, len(variances)))
    if not len(variances) or variances.max() < MIN_VARIANCE_RATIO * direction.variance:
        turned = rng.standard_normal((count, activations.shape[1]))
        turned -= np.outer(turned @ direction.unit, direction.unit)
        units = turned / np.linalg.norm(turned, axis=1, keepdims=True)
        reads = np.tile(direction.unit, (count, 1))
        return ControlDirections(units=units, reads=reads, kind="equal displacement")
    tilted = [_tilt_to_variance(draw, variances, direction.variance) for draw in draws]
    units = np.stack(tilted) @ basis
    return ControlDirections(units=units, reads=units, kind="equal variance")


def _tilt_to_variance(draw: Array, variances: Array, wanted: float) -> Array:
    """Return the tilted unit vector along which the variance is the wanted one."""
    low, high = -40.0, 40.0
    for _ in range(80):
        middle = (low + high) / 2
        if _tilted(draw, variances, middle)[1] < wanted:
            low = middle
        else:
            high = middle
    return _tilted(draw, variances, (low + high) / 2)[0]


def _tilted(draw: Array, variances: Array, exponent: float) -> tuple[Array, float]:
    """Return the unit vector λ^a·g in the basis of components, and the variance along it."""
    logs = np.log(np.abs(draw)) + exponent * np.log(variances / variances.max())
    vector = np.sign(draw) * np.exp(logs - logs.max())
    vector /= np.linalg.norm(vector)
    return vector, float((vector**2 * variances).sum())


def _fit(coordinates: Array, labels: Array) -> LogisticRegression:
    probe = LogisticRegression(C=PENALTY_C, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        # With a fixed penalty, a fit that stops early is close enough to be tested.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return probe.fit(coordinates, labels)
