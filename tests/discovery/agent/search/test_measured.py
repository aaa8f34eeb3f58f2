"""Differences of f on few pairs first, and on all where the few do not decide."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from discovery.agent.search.measured import SCREEN_PAIRS, MeasuredFunction, get_universe
from discovery.methods.ablation import NodeSet
from discovery.sites import head

N_PAIRS = 64
A, B, C = (head(0, h) for h in range(3))
EVERYTHING = frozenset({A, B, C})


class CountedFaithfulness:
    """A `Faithfulness` of three nodes with noisy effects that counts what is measured."""

    def __init__(self, effects: dict[Any, float], noise: float, n_pairs: int = N_PAIRS) -> None:
        self.everything = EVERYTHING
        self.n_pairs = n_pairs
        self.effects = effects
        generator = torch.Generator().manual_seed(0)
        self.noise = {
            node: noise * torch.randn(n_pairs, generator=generator).double() for node in effects
        }
        self.full = torch.ones(n_pairs).double()
        self.empty = torch.zeros(n_pairs).double()
        self.measured: list[tuple[NodeSet, int | None]] = []

    def set_metric(self, sets: Any, label: str, pairs: int | None = None) -> torch.Tensor:
        self.measured += [(kept, pairs) for kept in sets]
        rows = []
        for kept in sets:
            row = torch.ones(self.n_pairs).double()
            for node in self.everything - kept:
                row = row - self.effects.get(node, 0.0) - self.noise.get(node, 0.0)
            rows.append(row[:pairs])
        return torch.stack(rows)

    def __call__(self, sets: Any, label: str = "", pairs: int | None = None) -> torch.Tensor:
        return self.set_metric(sets, label, pairs).mean(1)


def differences(f: CountedFaithfulness, *bounds: float) -> dict[Any, float]:
    function = MeasuredFunction(f)  # type: ignore[arg-type]  # stands for a Faithfulness
    nodes = sorted(EVERYTHING)
    without = [EVERYTHING - {node} for node in nodes]
    values = function.differences([EVERYTHING] * 3, without, bounds, "")
    return dict(zip(nodes, values.tolist(), strict=True))


def test_what_is_clear_of_every_bound_is_measured_on_few_pairs() -> None:
    f = CountedFaithfulness({A: 0.9, B: 0.1, C: 0.001}, noise=0.01)
    values = differences(f, 0.1)
    assert values[A] == pytest.approx(0.9, abs=0.02)
    exact = 1 - float(f([EVERYTHING - {B}])[0])
    assert values[B] == pytest.approx(exact, abs=1e-12), "it is near the bound"
    on_all = {kept for kept, pairs in f.measured if pairs == N_PAIRS}
    assert on_all == {EVERYTHING, EVERYTHING - {B}}
    assert {pairs for _, pairs in f.measured[:-1]} == {SCREEN_PAIRS, 2 * SCREEN_PAIRS, N_PAIRS}


def test_noise_that_all_differences_share_is_taken_from_all_pairs() -> None:
    """A is noisy and in both sets of the reference; B and C are not."""
    f = CountedFaithfulness({A: 0.12, B: 0.01, C: 0.002}, noise=0.0)
    f.noise[A] = 0.3 * torch.randn(N_PAIRS, generator=torch.Generator().manual_seed(1)).double()
    function = MeasuredFunction(f)  # type: ignore[arg-type]  # stands for a Faithfulness
    reference = (EVERYTHING, EVERYTHING - {A})
    first = [EVERYTHING - {B}, EVERYTHING - {C}]
    second = [EVERYTHING - {A, B}, EVERYTHING - {A, C}]
    exact = float(-torch.diff(f(reference))[0])
    values = function.differences(first, second, [0.2], "", relative_to=reference)
    assert values.tolist() == pytest.approx([exact, exact], abs=1e-12)
    assert {len(s) for s, pairs in f.measured if pairs == SCREEN_PAIRS} == {1, 2}
    assert all(pairs in (None, SCREEN_PAIRS) for _, pairs in f.measured)
    plain = function.differences(first, second, [0.2], "").tolist()
    assert plain != pytest.approx([exact, exact], abs=0.05), "the first pairs alone are off"


def test_every_bound_counts_and_the_sign_does_not() -> None:
    f = CountedFaithfulness({A: -0.5, B: 0.1, C: 0.001}, noise=0.01)
    differences(f, 0.1, 0.5)
    on_all = {kept for kept, pairs in f.measured if pairs == N_PAIRS}
    assert {EVERYTHING - {A}, EVERYTHING - {B}} <= on_all


def test_with_few_pairs_all_are_measured_at_once() -> None:
    f = CountedFaithfulness({A: 0.1}, noise=0.01, n_pairs=SCREEN_PAIRS + 1)
    differences(f, 0.1)
    assert {pairs for _, pairs in f.measured} == {SCREEN_PAIRS + 1}


def test_the_decision_is_that_of_all_pairs() -> None:
    """Over many nodes of any effect: on which side of the bound each lies."""
    wrong = 0
    for seed in range(200):
        effect = 0.2 * seed / 200
        f = CountedFaithfulness({A: effect, B: 0.0, C: 0.0}, noise=0.05)
        torch.manual_seed(seed)
        f.noise[A] = 0.05 * torch.randn(N_PAIRS).double()
        exact = 1 - float(f([EVERYTHING - {A}])[0])
        wrong += (abs(differences(f, 0.1)[A]) > 0.1) != (abs(exact) > 0.1)
    assert wrong <= 2


def test_nothing_to_compare() -> None:
    f: Any = CountedFaithfulness({}, 0.0)
    assert len(MeasuredFunction(f).differences([], [], [0.1], "")) == 0
    assert get_universe({"resample": MeasuredFunction(f)}) == EVERYTHING
