"""Intervals over pairs, and the tests with their corrections.

Intervals are resampled within templates, a ratio as a whole, and constant data have no width. Each
test is compared with an enumeration, and checked under its null and at its edges.
"""

from __future__ import annotations

import math
import random
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.random_models.tiny_models import as_task
from discovery.methods.statistics import (
    BOOTSTRAP_DRAWS,
    Resamples,
    draw_bootstrap_weights,
    holm,
    interval_of_mean,
    interval_of_ratio,
    max_statistic_test,
    sign_flip_test,
)
from discovery.tasks.task import EncodedPair
from tests.oracles.evaluation.statistics import (
    max_statistic_by_enumeration,
    sign_flip_by_enumeration,
)


def task_of(*sizes: int):
    """So many pairs of each template, interleaved."""
    pairs = [
        EncodedPair(clean=(n, t), corrupted=(n, t + 1), answer=(1,), wrong=(2,), template=f"t{t}")
        for t, size in enumerate(sizes)
        for n in range(size)
    ]
    return as_task(random.Random(0).sample(pairs, len(pairs)))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 99))
def test_each_resample_has_every_templates_share(sizes, seed):
    task = task_of(*sizes)
    weights = draw_bootstrap_weights(task, draws=50, seed=seed)
    assert weights.shape == (50, len(task))
    torch.testing.assert_close(weights.sum(1), torch.ones(50, dtype=torch.float64))
    for template, size in enumerate(sizes):
        if size == 1:
            continue  # drawn together with the others that are alone
        mine = torch.tensor([pair.template == f"t{template}" for pair in task.pairs])
        torch.testing.assert_close(
            weights[:, mine].sum(1), torch.full((50,), size / len(task), dtype=torch.float64)
        )
    counts = weights * len(task)
    torch.testing.assert_close(counts, counts.round())


def test_the_seed_decides_and_the_default_is_fixed():
    task = task_of(8, 5)
    assert torch.equal(
        draw_bootstrap_weights(task), draw_bootstrap_weights(task, BOOTSTRAP_DRAWS, 0)
    )
    assert torch.equal(draw_bootstrap_weights(task, seed=3), draw_bootstrap_weights(task, seed=3))
    assert not torch.equal(
        draw_bootstrap_weights(task, seed=3), draw_bootstrap_weights(task, seed=4)
    )


@pytest.mark.parametrize(
    "weights", [draw_bootstrap_weights(task_of(6, 6)), Resamples.of(task_of(6, 6)).weights]
)
def test_every_pair_is_drawn_about_once(weights):
    torch.testing.assert_close(
        weights.mean(0) * 12, torch.ones(12, dtype=torch.float64), atol=0.1, rtol=0
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=4), st.integers(0, 99))
def test_one_pair_less_is_drawn_from_each_template_with_the_weight_of_all(sizes, seed):
    task = task_of(*sizes)
    resamples = Resamples.of(task, draws=50, seed=seed)
    assert resamples.degrees_of_freedom == len(task) - len(sizes)
    for template, size in enumerate(sizes):
        mine = torch.tensor([pair.template == f"t{template}" for pair in task.pairs])
        torch.testing.assert_close(
            resamples.weights[:, mine].sum(1),
            torch.full((50,), size / len(task), dtype=torch.float64),
        )
        counts = resamples.weights[:, mine] * len(task) * (size - 1) / size
        torch.testing.assert_close(counts, counts.round(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("sizes", [(2, 2, 2), (3, 5), (4, 4, 4)])
def test_resamples_vary_as_much_as_a_stratified_mean_does(sizes):
    """That is Σ (template's share)² · its unbiased variance / its pairs; plain draws have less."""
    task = task_of(*sizes)
    values = torch.randn(len(task), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = 0.0
    for template, size in enumerate(sizes):
        mine = values[torch.tensor([pair.template == f"t{template}" for pair in task.pairs])]
        expected += (size / len(task)) ** 2 * float(mine.var()) / size
    variances = [
        float((weights @ values).var())
        for weights in (Resamples.of(task, 50_000).weights, draw_bootstrap_weights(task, 50_000))
    ]
    assert variances[0] == pytest.approx(expected, rel=0.03)
    assert variances[1] < 0.85 * expected


def test_the_tail_is_that_of_a_t_distribution():
    """df = 4: t = -2.776, whose normal tail is 0.00275; many pairs: 0.025."""
    assert Resamples.of(task_of(3, 3)).tail == pytest.approx(0.00275, abs=1e-5)
    assert Resamples.of(task_of(4000), 2).tail == pytest.approx(0.025, abs=1e-4)
    assert Resamples.of(task_of(1), 2).tail == 0.0


def test_few_pairs_of_many_templates_are_covered():
    """48 pairs of 16 templates, each with its own mean: 95% of intervals hold the true mean.

    The tolerance is 3 standard errors.
    """
    task = task_of(*[3] * 16)
    held = 0
    tries = 600
    generator = torch.Generator().manual_seed(0)
    templates = torch.tensor([int(pair.template.removeprefix("t")) for pair in task.pairs]).double()
    for seed in range(tries):
        values = templates + torch.randn(48, generator=generator, dtype=torch.float64)
        interval = interval_of_mean(values, Resamples.of(task, 400, seed))
        held += interval.low <= 7.5 <= interval.high
    assert held / tries == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / tries))


@pytest.mark.parametrize("value", [0.0, 1.0, -3.7, 1e-12, 0.1, 1e8])
def test_constant_data_have_no_width(value):
    resamples = Resamples.of(task_of(7, 4))
    interval = interval_of_mean(torch.full((11,), value), resamples)
    assert interval.low == interval.mean == interval.high == pytest.approx(value)
    ratio, median = interval_of_ratio(torch.full((11,), value), torch.full((11,), 2.0), resamples)
    assert ratio.low == ratio.mean == ratio.high == pytest.approx(value / 2)
    assert median == pytest.approx(value / 2)


def test_pairs_alone_in_their_templates_are_drawn_together():
    """Each within its own template would leave an interval of no width, whatever they differ by."""
    resamples = Resamples.of(task_of(1, 1, 1))
    interval = interval_of_mean(torch.tensor([1.0, 5.0, 9.0]), resamples)
    assert (interval.low, interval.mean, interval.high) == (1.0, 5.0, 9.0)
    assert torch.equal(resamples.weights, Resamples.of(task_of(3)).weights)
    mixed = Resamples.of(task_of(1, 4, 1)).weights
    alone = torch.tensor([pair.template != "t1" for pair in task_of(1, 4, 1).pairs])
    torch.testing.assert_close(
        mixed[:, alone].sum(1), torch.full((BOOTSTRAP_DRAWS,), 2 / 6, dtype=torch.float64)
    )
    assert float(mixed[:, alone].std(0).min()) > 0


def test_a_single_pair_has_no_width():
    interval = interval_of_mean(torch.tensor([5.0]), Resamples.of(task_of(1)))
    assert (interval.low, interval.mean, interval.high) == (5.0, 5.0, 5.0)


def test_the_interval_of_a_mean_is_the_normal_one_for_many_pairs():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)) * 3 + 1
    interval = interval_of_mean(values, Resamples.of(task_of(400)))
    half = 1.96 * float(values.std()) / math.sqrt(400)
    assert interval.mean == pytest.approx(float(values.mean()))
    assert interval.low == pytest.approx(interval.mean - half, abs=0.06 * half * 2)
    assert interval.high == pytest.approx(interval.mean + half, abs=0.06 * half * 2)


def test_between_templates_nothing_varies():
    """All variance is between templates, which every resample holds in the same shares."""
    task = task_of(10, 10)
    values = torch.tensor([100.0 if pair.template == "t0" else 0.0 for pair in task.pairs])
    interval = interval_of_mean(values, Resamples.of(task))
    assert interval.low == interval.high == 50.0


def test_a_ratio_is_resampled_as_a_whole():
    """Numerator and denominator vary in proportion, so their ratio does not vary."""
    resamples = Resamples.of(task_of(9))
    below = torch.rand(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
    ratio, median = interval_of_ratio(0.8 * below, below, resamples)
    assert ratio.low == ratio.high == pytest.approx(0.8, abs=1e-6)
    assert median == pytest.approx(0.8, abs=1e-6)
    assert interval_of_mean(below, resamples).high > interval_of_mean(below, resamples).low


def test_a_ratio_is_of_means_and_not_a_mean_of_ratios():
    ratio, _ = interval_of_ratio(
        torch.tensor([1.0, 9.0]), torch.tensor([1.0, 3.0]), Resamples.of(task_of(2))
    )
    assert ratio.mean == 2.5
    assert (ratio.low, ratio.high) == (1.0, 3.0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.floats(0.1, 10), st.floats(-50, 50)
)
def test_the_mean_lies_within_and_the_interval_moves_with_its_data(values, scale, shift):
    resamples = Resamples.of(task_of(len(values)), draws=200)
    data = torch.tensor(values, dtype=torch.float64)
    plain = interval_of_mean(data, resamples)
    moved = interval_of_mean(data * scale + shift, resamples)
    assert plain.low <= plain.mean <= plain.high
    assert min(values) - 1e-9 <= plain.low
    assert plain.high <= max(values) + 1e-9
    for mine, theirs in (
        (plain.low, moved.low),
        (plain.mean, moved.mean),
        (plain.high, moved.high),
    ):
        assert theirs == pytest.approx(mine * scale + shift, abs=1e-6)


@pytest.mark.parametrize("n", range(1, 11))
def test_sign_flip_p_is_that_of_every_sign_pattern(n: int) -> None:
    rng = random.Random(n)
    for centre in (0.0, 0.5, -2.0):
        differences = [rng.gauss(centre, 1.0) for _ in range(n)]
        assert sign_flip_test(np.array(differences), 0) == pytest.approx(
            sign_flip_by_enumeration(differences)
        )
    assert sign_flip_test(np.ones(n), 0) == pytest.approx(min(1.0, 2 / 2**n))
    assert sign_flip_test(np.zeros(n), 0) == 1.0
    assert sign_flip_test(np.array([1.0, -1.0] * n), 0) == 1.0


def test_sign_flip_with_many_pairs_draws_ten_thousand() -> None:
    """p is at least 2/10001, depends on the seed alone, and is near the enumeration."""
    rng = np.random.default_rng(0)
    assert sign_flip_test(rng.normal(1.0, 0.1, 60), 0) == pytest.approx(2 / 10001)
    some = rng.normal(0.25, 1.0, 16)
    assert sign_flip_test(some, 3) == sign_flip_test(some, 3)
    assert sign_flip_test(some, 3) == pytest.approx(
        sign_flip_by_enumeration(some.tolist()), abs=0.02
    )


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.04, 0.001, 0.02, 0.9], [0.08, 0.004, 0.06, 0.9]),
        ([0.5, 0.5, 0.5], [1.0, 1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
    ],
)
def test_holm(p: list[float], corrected: list[float]) -> None:
    assert holm(p) == pytest.approx(corrected)


def test_the_max_statistic_is_that_of_every_choice_of_signs() -> None:
    effects = np.random.default_rng(0).normal(size=(8, 3)) + np.array([1.5, 0.3, 0.0])
    assert max_statistic_test(effects, flips=20_000) == pytest.approx(
        max_statistic_by_enumeration(effects), abs=0.012
    )


def test_the_max_statistic_by_hand() -> None:
    """With three pairs of one sign, two of eight sign patterns are as large: p is 1/4."""
    assert max_statistic_test(np.array([[2.0, 1e-6]] * 3), flips=40_000) == pytest.approx(
        0.25, abs=0.01
    )


def test_a_cell_among_many_is_found_and_noise_is_not() -> None:
    effects = np.random.default_rng(1).normal(size=(40, 200))
    effects[:, 7] += 1.2
    p = max_statistic_test(effects, flips=2000)
    assert p[7] < 0.01
    assert (np.delete(p, 7) <= 0.05).sum() <= 1


def test_under_the_null_one_grid_in_twenty_has_a_significant_cell() -> None:
    generator = np.random.default_rng(2)
    false = sum(
        max_statistic_test(generator.normal(size=(20, 30)), flips=400, seed=n).min() <= 0.05
        for n in range(300)
    )
    assert 5 <= false <= 28  # 15 expected, standard deviation 3.8


def test_nothing_and_missing_cells() -> None:
    effects = np.array([[0.0, np.nan, 1.0], [0.0, np.nan, 1.2], [0.0, np.nan, np.nan]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = max_statistic_test(effects, flips=500)
    assert p[0] == p[1] == 1.0
    assert 0 < p[2] < 1
    assert max_statistic_test(np.zeros((3, 0))).shape == (0,)
