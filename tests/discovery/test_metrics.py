"""Metrics on logits small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.metrics import (
    gather_tokens,
    is_right,
    is_top,
    kl_divergence,
    logit_difference,
    measure,
    probability_difference,
)

LOG = math.log
# Softmax of log(1, 2, 3, 4) is (0.1, 0.2, 0.3, 0.4); the second row is uniform.
LOGITS = torch.tensor([[LOG(1), LOG(2), LOG(3), LOG(4)], [0.0, 0.0, 0.0, 0.0]])


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def test_single_tokens():
    answer, wrong = ids([3], [0]), ids([1], [2])
    torch.testing.assert_close(
        logit_difference(LOGITS, answer, wrong), torch.tensor([LOG(4 / 2), 0.0])
    )
    torch.testing.assert_close(
        probability_difference(LOGITS, answer, wrong), torch.tensor([0.4 - 0.2, 0.0])
    )


def test_sets_are_summed_and_padding_counts_nothing():
    answer, wrong = ids([3, 1], [0, -1]), ids([0, -1, -1], [1, 2, 3])
    torch.testing.assert_close(
        logit_difference(LOGITS, answer, wrong), torch.tensor([LOG(6 / 1), LOG(1 / 3)])
    )
    torch.testing.assert_close(
        probability_difference(LOGITS, answer, wrong), torch.tensor([0.6 - 0.1, 0.25 - 0.75])
    )


def test_padding_is_minus_infinity_even_if_token_0_is_large():
    assert gather_tokens(LOGITS, ids([-1, 2], [3, -1])).tolist() == [
        [-math.inf, pytest.approx(LOG(3))],
        [0.0, -math.inf],
    ]


def test_kl_by_hand():
    uniform = torch.zeros(1, 4)
    first = LOGITS[:1]
    clean_first = sum(p * LOG(p / 0.25) for p in (0.1, 0.2, 0.3, 0.4))
    clean_uniform = sum(0.25 * LOG(0.25 / p) for p in (0.1, 0.2, 0.3, 0.4))
    torch.testing.assert_close(kl_divergence(uniform, clean=first), torch.tensor([clean_first]))
    torch.testing.assert_close(kl_divergence(first, clean=uniform), torch.tensor([clean_uniform]))


def test_the_clean_model_has_divergence_zero():
    torch.testing.assert_close(kl_divergence(LOGITS, LOGITS), torch.zeros(2))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(-20, 20))
def test_a_constant_added_to_all_logits_changes_no_metric(seed, constant):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 7, generator=rng, dtype=torch.float64)
    clean = torch.randn(3, 7, generator=rng, dtype=torch.float64)
    answer, wrong = ids([0, 1], [2, -1], [6, 5]), ids([3], [4], [0])
    for name in ("logit_difference", "probability_difference", "kl_divergence"):
        plain = measure(name, logits, answer, wrong, clean)
        torch.testing.assert_close(
            measure(name, logits + constant, answer, wrong, clean), plain, atol=1e-9, rtol=1e-9
        )
        assert name != "probability_difference" or bool((plain.abs() <= 1).all())
        assert name != "kl_divergence" or bool((plain >= -1e-12).all())


def test_exchanging_answers_changes_the_sign():
    answer, wrong = ids([3, 1], [0, -1]), ids([0, -1], [1, 2])
    for name in ("logit_difference", "probability_difference"):
        torch.testing.assert_close(
            measure(name, LOGITS, wrong, answer), -measure(name, LOGITS, answer, wrong)
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["logit_difference", "probability_difference", "kl_divergence"])
def test_half_precision_is_measured_in_single(dtype, name):
    half = LOGITS.to(dtype)
    got = measure(name, half, ids([3], [0]), ids([1], [2]), half.flip(0))
    assert got.dtype == torch.float32
    torch.testing.assert_close(
        got, measure(name, half.float(), ids([3], [0]), ids([1], [2]), half.float().flip(0))
    )


def test_double_precision_stays():
    assert (
        measure("logit_difference", LOGITS.double(), ids([3], [0]), ids([1], [2])).dtype
        == torch.float64
    )


def test_divergence_without_the_clean_run_is_a_bug():
    with pytest.raises(ValueError, match="clean"):
        measure("kl_divergence", LOGITS, ids([3], [0]), ids([1], [2]))


def test_a_tie_is_not_right():
    assert is_right(LOGITS, ids([3], [0]), ids([1], [1])).tolist() == [True, False]


def test_a_set_is_right_by_its_summed_probability():
    # 0.5 against 0.4, and 0.5 against 0.25
    assert is_right(LOGITS, ids([1, 2], [0, 1]), ids([3], [2])).tolist() == [True, True]
    assert is_right(LOGITS, ids([1, -1], [0, -1]), ids([3], [2])).tolist() == [False, False]


def test_top_is_the_single_most_likely_token():
    assert is_top(LOGITS[:1], ids([3, -1])).tolist() == [True]
    assert is_top(LOGITS[:1], ids([2, 1])).tolist() == [False]
