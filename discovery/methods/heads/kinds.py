"""The kinds of heads by name, and what is said of each.

Every score stands beside its chance level and its interval, every kind beside its causal check.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from discovery.methods.statistics import Interval

KindName = Literal[
    "previous_token",
    "first_token",
    "local",
    "duplicate_token",
    "induction",
    "copying",
    "anti_copying",
    "name_mover",
    "negative_name_mover",
    "s_inhibition",
]

ALPHA = 0.05
# How far above chance a score must be for a head to be named.
MINIMUM_EFFECT: Mapping[KindName, float] = {
    "previous_token": 0.3,
    "first_token": 0.5,
    "local": 0.5,
    "duplicate_token": 0.2,
    "induction": 0.2,
    "copying": 0.5,
    "anti_copying": 0.5,
    "name_mover": 0.02,
    "negative_name_mover": 0.02,
    "s_inhibition": 0.02,
}


@dataclass(frozen=True, kw_only=True)
class HeadScore:
    """How far one head is of one kind.

    Attributes:
        node: the head.
        score: the score with its 95% interval.
        chance: the mean score by chance.
        p: the p-value of being above chance, corrected for all heads and kinds.
        is_named: whether the head is of this kind: p and the excess over chance suffice.
    """

    node: str
    score: Interval
    chance: float
    p: float
    is_named: bool


@dataclass(frozen=True, kw_only=True)
class AblationCheck:
    """What the model loses without the named heads of a kind, and without random heads.

    Attributes:
        measure: what is measured: "loss on repeated tokens", or the metric of the task.
        n_heads: the number of heads that are ablated together.
        intact: the measure with nothing ablated.
        change: by how much it rises without them, with its interval over sequences or pairs.
        controls: by how much it rises without each random set of as many heads.
        p: (1 + number of random sets that change it at least as much) / (1 + number of sets).
    """

    measure: str
    n_heads: int
    intact: float
    change: Interval
    controls: tuple[float, ...]
    p: float


@dataclass(frozen=True, kw_only=True)
class HeadKind:
    """One kind of heads.

    Attributes:
        kind: its name.
        minimum_effect: how far above chance a named head's score is at least.
        heads: the named heads, the largest score first; there may be none.
        runners_up: the heads with the largest scores that are not named.
        check: the causal check of the named heads; None if there are none.
    """

    kind: KindName
    minimum_effect: float
    heads: tuple[HeadScore, ...]
    runners_up: tuple[HeadScore, ...]
    check: AblationCheck | None


def t_interval(values: np.ndarray) -> Interval:
    """Return the mean of independent samples with its 95% t interval."""
    mean = float(values.mean())
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return Interval(mean, mean - reach, mean + reach)


def p_above(differences: np.ndarray) -> np.ndarray:
    """Return the one-sided p of each column's mean being above 0.

    It is that of a t-test over rows. A column without any spread has a p of 0 if its mean is above
    0, and of 1 if it is not; a single row has a p of 1.

    Args:
        differences: one number for each sample and column.
    """
    n_rows = len(differences)
    if n_rows < 2:
        return np.ones(differences.shape[1])
    mean = differences.mean(0)
    error = differences.std(0, ddof=1) / np.sqrt(n_rows)
    certain = np.where(mean > 0, 0.0, 1.0)
    ratio = np.divide(mean, error, out=np.zeros_like(mean), where=error > 0)
    return np.where(error > 0, stats.t.sf(ratio, n_rows - 1), certain)
