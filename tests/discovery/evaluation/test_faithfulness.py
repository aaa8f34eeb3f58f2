"""f(S) and its intervals, against m(S) recomputed from the weights."""

from __future__ import annotations

import math
import random
import statistics
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.known_circuits.truth import load_truth
from benchmarks.random_models.tiny_models import as_task
from discovery.engine import Engine, Meter
from discovery.evaluation import Faithfulness, ResampledFaithfulness, SplitEvaluator
from discovery.methods.statistics import Resamples, draw_bootstrap_weights, interval_of_mean
from discovery.sites import Node

ABLATIONS = ("resample", "mean")


def some_sets(names: Iterable[str], truth: Iterable[str]) -> list[frozenset[Node]]:
    """Nothing, everything, the truth and its rest, and a few at random."""
    universe = sorted(map(Node.parse, names))
    rng = random.Random(3)
    circuit = frozenset(map(Node.parse, truth))
    drawn = [frozenset(node for node in universe if rng.random() < 0.5) for _ in range(6)]
    return [frozenset(), frozenset(universe), circuit, frozenset(universe) - circuit, *drawn]


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", ["induction", "induction_layernorm", "or_mlp", "opposing_030"])
def test_f_is_what_the_weights_give(
    name: str, ablation: Any, load_case: Callable[[str], Any]
) -> None:
    case = load_case(name)
    f = case.f(ablation)
    oracle = case.oracle(ablation)
    sets = some_sets(oracle.universe, load_truth(name).nodes)
    assert f(sets).tolist() == pytest.approx(oracle.f(*sets), abs=1e-4)
    scale = float((f.full - f.empty).mean())
    measured = f.set_metric(sets).double()
    torch.testing.assert_close(measured, oracle.metrics(sets), atol=1e-4 * abs(scale), rtol=0)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_the_evidence_of_a_circuit(ablation: Any, load_case: Callable[[str], Any]) -> None:
    """The interval is the percentile bootstrap of the ratio, recomputed draw by draw.

    The median and the share in the band are those of the pairs' own ratios.
    """
    case = load_case("induction")
    f = case.f(ablation)
    oracle = case.oracle(ablation)
    circuit = frozenset(map(Node.parse, load_truth("induction").nodes))
    evidence = f.measure_circuit(circuit)
    empty, full = oracle.metrics([(), oracle.universe])
    assert evidence.metric_full == pytest.approx(float(full.mean()), abs=1e-4)
    assert evidence.metric_empty == pytest.approx(float(empty.mean()), abs=1e-4)
    resamples = Resamples.of(f.engine.task)
    for score, kept, band in (
        (evidence.faithfulness, circuit, (0.8, 1.2)),
        (evidence.knockout, f.everything - circuit, (-0.2, 0.2)),
    ):
        (metric,) = oracle.metrics([kept])
        assert score.value == pytest.approx(oracle.f1(kept), abs=1e-4)
        draws = sorted(
            float((row @ (metric - empty)) / (row @ (full - empty))) for row in resamples.weights
        )
        place_low = resamples.tail * (len(draws) - 1)
        place_high = (1 - resamples.tail) * (len(draws) - 1)
        low, high = (
            draws[math.floor(at)] + (at % 1) * (draws[math.ceil(at)] - draws[math.floor(at)])
            for at in (place_low, place_high)
        )
        assert (score.low, score.high) == pytest.approx((low, high), abs=1e-4)
        single = ((metric - empty) / (full - empty)).tolist()
        assert score.median == pytest.approx(statistics.median(single), abs=1e-4)
        inside = sum(band[0] <= value <= band[1] for value in single) / len(single)
        assert score.share_in_band == pytest.approx(inside, abs=1.01 / len(single))
    assert evidence.reference.alignment == "position"
    sizes = [
        sum((p.template, len(p.tokens)) == key for p in oracle.prompts) for key in oracle.groups
    ]
    assert evidence.reference.size == (1 if ablation == "resample" else min(sizes) - 1)


def test_the_median_of_an_even_number_of_pairs_lies_between_the_middle_two(
    load_case: Callable[[str], Any],
) -> None:
    case = load_case("induction")
    f = Faithfulness(Engine(case.model, as_task(case.task.discovery.pairs[:2])), "resample")
    kept = f.everything - frozenset({Node.parse("a0.h2")})
    (metric,) = f.set_metric([kept]).double()
    first, other = ((metric - f.empty) / (f.full - f.empty)).tolist()
    assert first != other
    assert f.score(kept, (0.8, 1.2)).median == pytest.approx((first + other) / 2, abs=1e-9)


def test_difference_is_each_pairs_share(load_case: Callable[[str], Any]) -> None:
    f = load_case("induction").f("resample")
    first = f.everything
    other = f.everything - {min(f.everything)}
    assert float(f.per_pair_difference(first, other).mean()) == pytest.approx(
        float(f([first])[0] - f([other])[0]), abs=1e-9
    )


def test_over_the_first_pairs_only(load_case: Callable[[str], Any]) -> None:
    """All means are over those pairs, and measuring them first does not change f of all pairs."""
    case = load_case("induction")
    oracle = case.oracle("resample")
    f = Faithfulness(case.evaluator.engine, "resample")
    kept = frozenset(map(Node.parse, oracle.universe[2:7]))
    part = float(f([kept], "part", 10)[0])
    metric, empty, full = (row[:10].mean() for row in oracle.metrics([kept, (), oracle.universe]))
    assert part == pytest.approx(float((metric - empty) / (full - empty)), abs=1e-4)
    assert float(f([kept])[0]) == pytest.approx(oracle.f1(kept), abs=1e-4)
    assert float(f([kept], "part", 10)[0]) == pytest.approx(part, abs=1e-9)


def test_a_resample_weighs_the_pairs(load_case: Callable[[str], Any]) -> None:
    """f with each pair counted as often as it was drawn; equal weights give f itself."""
    case = load_case("induction")
    f = case.f("mean")
    oracle = case.oracle("mean")
    n = len(case.evaluator.engine)
    kept = frozenset(map(Node.parse, oracle.universe[:5]))
    even = ResampledFaithfulness(f, torch.full((n,), 1 / n, dtype=torch.float64))
    assert float(even([kept])[0]) == pytest.approx(float(f([kept])[0]), abs=1e-9)
    draw = draw_bootstrap_weights(case.evaluator.engine.task, 1, seed=5)[0]
    counts = (draw * n).round().int().tolist()
    drawn = [index for index, count in enumerate(counts) for _ in range(count)]
    assert len(drawn) == n
    metric, empty, full = (row[drawn].mean() for row in oracle.metrics([kept, (), oracle.universe]))
    assert float(ResampledFaithfulness(f, draw)([kept])[0]) == pytest.approx(
        float((metric - empty) / (full - empty)), abs=1e-4
    )
    first = [index for index in drawn if index < 12]
    metric, empty, full = (row[first].mean() for row in oracle.metrics([kept, (), oracle.universe]))
    assert float(ResampledFaithfulness(f, draw)([kept], "part", 12)[0]) == pytest.approx(
        float((metric - empty) / (full - empty)), abs=1e-4
    )


def test_by_kl_divergence_smaller_is_more_of_the_behaviour(load_case: Callable[[str], Any]) -> None:
    """m(U) = 0 and m(∅) > 0, and f is still defined, 1 at U, 0 at ∅, near 1 for the circuit."""
    case = load_case("induction")
    f = Faithfulness(Engine(case.model, case.task.discovery, metric="kl_divergence"), "resample")
    circuit = frozenset(map(Node.parse, load_truth("induction").nodes))
    assert float(f.full.abs().max()) < 1e-5
    assert float(f.empty.min()) > 0
    assert f.is_defined
    assert f.gap_low > 0
    full, empty, kept, knocked = f(
        [f.everything, frozenset(), circuit, f.everything - circuit]
    ).tolist()
    assert (full, empty) == pytest.approx((1, 0), abs=1e-9)
    assert kept > 0.8
    assert knocked < 0.2
    score = f.score(circuit, (0.8, 1.2))
    assert score.low <= score.value <= score.high


def test_f_is_null_if_ablation_removes_nothing(load_case: Callable[[str], Any]) -> None:
    """Clean and corrupted sides exchanged: ablating everything then raises the metric."""
    case = load_case("induction")
    swapped = [
        replace(pair, clean=pair.corrupted, corrupted=pair.clean)
        for pair in case.task.discovery.pairs
    ]
    f = Faithfulness(Engine(case.model, as_task(swapped)), "resample")
    assert f.gap_low < 0
    assert not f.is_defined
    assert f.score(f.everything, (0.8, 1.2)) is None
    evidence = f.measure_circuit(frozenset())
    assert evidence.faithfulness is None
    assert evidence.knockout is None
    assert evidence.metric_full < evidence.metric_empty


@pytest.mark.parametrize("copies", [1, 12])
def test_constant_data_have_intervals_of_no_width(
    copies: int, load_case: Callable[[str], Any]
) -> None:
    """The same pair again and again (once: a single pair): no NaN, no width, no warning."""
    case = load_case("induction")
    task = as_task(case.task.discovery.pairs[:1] * copies)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ablation in ABLATIONS:
            f = Faithfulness(Engine(case.model, task), ablation)
            gap = interval_of_mean(f.full - f.empty, f.resamples)
            assert gap.low == gap.mean == gap.high
            assert f.is_defined
            for node in sorted(f.everything):
                score = f.score(f.everything - {node}, (0.8, 1.2))
                assert score.low == score.value == score.high
                assert math.isfinite(score.value)
                assert score.median == pytest.approx(score.value, abs=1e-6)
                assert score.share_in_band in (0.0, 1.0)


def test_an_evaluator_shuffles_its_pairs_by_seed(load_case: Callable[[str], Any]) -> None:
    case = load_case("induction")
    pairs = {
        seed: SplitEvaluator.of(
            case.model, case.task.discovery, "all", seed, metric=None, memory=None, meter=Meter()
        ).engine.task.pairs
        for seed in (0, 1)
    }
    assert pairs[0] == case.evaluator.engine.task.pairs
    assert pairs[0] != pairs[1]
    assert sorted(pair.clean for pair in pairs[0]) == sorted(
        pair.clean for pair in case.task.discovery.pairs
    )


def test_an_evaluator_of_the_first_pairs(load_case: Callable[[str], Any]) -> None:
    """It measures what the whole one measures on them; with all of them it is the same one."""
    case = load_case("induction")
    evaluator = case.evaluator
    first = evaluator.first(5)
    assert first.engine.task.pairs == evaluator.engine.task.pairs[:5]
    assert first.engine.meter is evaluator.engine.meter
    sets = some_sets(map(str, case.model.info.nodes()), [])[:6]
    torch.testing.assert_close(
        first.f("resample").set_metric(sets),
        evaluator.f("resample").set_metric(sets, "", 5),
        atol=1e-5,
        rtol=1e-5,
    )
    assert evaluator.first(len(evaluator.engine)) is evaluator
