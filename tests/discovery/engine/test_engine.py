"""The engine: blocks, baselines, means, and the tasks and metrics that it refuses."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery.engine import SIDES, Engine
from discovery.errors import MeasurementError, MemoryLimitError
from discovery.sites import Site
from tests.discovery.engine.runs import engine_with_blocks, logits_of
from tests.oracles.evaluation.mean_reference import oracle_of_pairs
from tests.oracles.patching.activation_patching import METRICS, metric_of


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["gpt2", "rotary"])
def test_baselines_are_each_prompts_own(tiny_models, name, metric):
    model = tiny_models.load(name, dtype="float64")
    task = as_task(random_pairs([6, 4, 7, 5], seed=1, sets=3))
    clean = [logits_of(model, pair.clean).logits[0] for pair in task.pairs]
    for engine in (Engine(model, task, metric=metric), engine_with_blocks(model, task, 2)):
        if engine.metric != metric:
            engine.metric = metric
        for side in SIDES:
            rows = [logits_of(model, getattr(pair, side)).logits[0] for pair in task.pairs]
            expected = [
                metric_of(metric, row, pair, up)
                for row, pair, up in zip(rows, task.pairs, clean, strict=True)
            ]
            torch.testing.assert_close(
                engine.baseline(side),
                torch.tensor(expected, dtype=torch.float64),
                atol=1e-7,
                rtol=1e-7,
            )  # type: ignore[arg-type]


@pytest.mark.parametrize("max_pairs", [1, 2, 3])
def test_blocks_cut_the_pairs_in_order(tiny_models, max_pairs):
    task = as_task(random_pairs([6, 4, 7, 5, 3]))
    engine = engine_with_blocks(tiny_models.load("native"), task, max_pairs)
    blocks = list(engine.blocks())
    assert [pair for _, block in blocks for pair in block.prompts.pairs] == list(task.pairs)
    assert [first for first, _ in blocks] == [
        sum(len(block.prompts) for _, block in blocks[:n]) for n in range(len(blocks))
    ]
    assert all(len(block.prompts) <= max_pairs for _, block in blocks)


def test_a_block_is_kept_until_another_is_asked_for(tiny_models):
    task = as_task(random_pairs([5] * 4))
    engine = Engine(tiny_models.load("native"), task)
    assert next(engine.blocks())[1] is next(engine.blocks())[1]
    engine = engine_with_blocks(tiny_models.load("native"), task, 2)
    first, second = (block for _, block in engine.blocks())
    assert first is not second
    assert next(engine.blocks())[1] is not first


def test_more_memory_never_means_more_blocks(tiny_models):
    task = as_task(random_pairs([5] * 6))
    counts = []
    for memory in range(10_000, 300_000, 10_000):
        try:
            counts.append(
                len(list(Engine(tiny_models.load("native"), task, memory=memory).blocks()))
            )
        except MemoryLimitError:
            assert not counts
    assert all(more >= fewer for more, fewer in pairwise(counts))
    assert counts[-1] == 1


def test_a_baseline_is_computed_once_however_many_the_blocks(tiny_models):
    engine = Engine(tiny_models.load("gpt2"), as_task(random_pairs([5, 4, 6, 5, 4, 6])))
    engine._block_bounds = [(0, 3), (3, 6)]
    first = engine.baseline("clean")
    spent = engine.meter.spent
    assert torch.equal(engine.baseline("clean"), first)
    assert engine.meter.spent == spent


def test_means_are_those_of_their_definition(tiny_models):
    model = tiny_models.load("gpt2", dtype="float64")
    pairs = random_pairs([5] * 9 + [4, 6], labelled=True)
    for engine in (Engine(model, as_task(pairs)), engine_with_blocks(model, as_task(pairs), 3)):
        sites = [Site("z", 1), Site("mlp_out", 0)]
        engine.prepare_means(sites)
        for site in sites:
            own = [logits_of(model, pair.corrupted, [site]).activations[site][0] for pair in pairs]
            for first, block in engine.blocks():
                means = engine.reference_values("mean", first, block, site)
                for row in range(len(block.prompts)):
                    for position in range(len(pairs[first + row].clean)):
                        pair = first + row
                        expected, _, _ = oracle_of_pairs(pairs, own).mean(
                            pairs[pair], own[pair], position
                        )
                        torch.testing.assert_close(
                            means[row, position], expected, atol=1e-7, rtol=1e-7
                        )


def test_the_values_of_resample_and_zero_ablation(tiny_models):
    engine = Engine(tiny_models.load("gpt2"), as_task(random_pairs([5, 4])))
    ((first, block),) = engine.blocks()
    for site in (Site("z", 1), Site("mlp_out", 0)):
        assert torch.equal(
            engine.reference_values("resample", first, block, site),
            block.activation("corrupted", site),
        )
        zero = engine.reference_values("zero", first, block, site)
        assert zero.shape == block.activation("corrupted", site).shape
        assert zero.dtype == block.activation("corrupted", site).dtype
        assert not zero.any()


def test_tasks_and_metrics_that_cannot_be_measured(tiny_models):
    model = tiny_models.load("native")
    with pytest.raises(MeasurementError, match="has no pairs"):
        Engine(model, as_task(()))
    with pytest.raises(MeasurementError, match="metric 'accuracy' is not known"):
        Engine(model, as_task(random_pairs([4])), metric="accuracy")  # type: ignore[arg-type]
    with pytest.raises(MemoryLimitError, match="A memory limit of 10 bytes") as caught:
        Engine(model, as_task(random_pairs([4])), memory=10)
    assert "memory limit" in caught.value.cure
