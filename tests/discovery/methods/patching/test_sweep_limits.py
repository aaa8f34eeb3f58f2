"""What a sweep costs, and what happens when memory or budget are short."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.random_models.tiny_models import TinyModels, as_task, random_pairs
from discovery.backends.info import Abilities
from discovery.engine import Engine, Meter
from discovery.errors import BudgetError, MemoryLimitError
from discovery.methods.patching import estimate_sweep, patch_sweep
from discovery.sites import Direction
from discovery.tasks.task import Task

DIRECTIONS: tuple[Direction, ...] = ("denoising", "noising")


def blocks_of(tiny_models: TinyModels, name: str, task: Task, pairs_each: int) -> tuple[Any, int]:
    """Return a model, and the least memory that holds so many pairs at a time."""
    model = tiny_models.load(name, dtype="float64")
    low = 1
    high = 1 << 40
    while low < high:
        middle = (low + high) // 2
        try:
            enough = len(list(Engine(model, task, memory=middle).blocks())) <= -(
                -len(task.pairs) // pairs_each
            )
        except MemoryLimitError:
            enough = False
        low, high = (low, middle) if enough else (middle + 1, high)
    return model, low


@pytest.mark.parametrize(
    ("name", "site", "pairs_each"),
    [
        ("gpt2", "resid_pre", 1),
        ("llama", "attn_out", 3),
        ("gpt2", "head_out", 2),
        ("native", "head_out_by_position", 1),
        ("gpt2", "pattern", 2),
    ],
)
def test_little_memory_gives_the_same_numbers(tiny_models, name, site, pairs_each):
    task = as_task(random_pairs([6, 4, 7, 7, 5], seed=4))
    model, memory = blocks_of(tiny_models, name, task, pairs_each)
    assert len(list(Engine(model, task, memory=memory).blocks())) == -(-5 // pairs_each)
    for direction in DIRECTIONS:
        plenty, little = (
            patch_sweep(model, task, site, direction=direction, memory=limit)
            for limit in (None, memory)
        )
        torch.testing.assert_close(little.per_pair, plenty.per_pair, equal_nan=True)
        torch.testing.assert_close(little.values, plenty.values, equal_nan=True)
        torch.testing.assert_close(little.metric_clean, plenty.metric_clean)
        torch.testing.assert_close(little.metric_corrupted, plenty.metric_corrupted)


def test_less_memory_than_one_pair_is_refused_with_what_is_needed(tiny_models):
    task = as_task(random_pairs([6]))
    model, memory = blocks_of(tiny_models, "gpt2", task, 1)
    with pytest.raises(MemoryLimitError, match=f"{memory:,} needed"):
        patch_sweep(model, task, memory=memory - 1)
    patch_sweep(model, task, memory=memory)


@pytest.mark.parametrize(
    ("fault", "fits"),
    [
        (torch.OutOfMemoryError("cuda"), 1),
        (torch.OutOfMemoryError("cuda"), 5),
        (MemoryError(), 2),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: x"), 3),
        (RuntimeError("MPS backend out of memory"), 3),
    ],
)
def test_batches_are_halved_if_memory_runs_out_and_the_numbers_are_the_same(
    tiny_models, monkeypatch, fits, fault
):
    model = tiny_models.load("gpt2", dtype="float64")
    task = as_task(random_pairs([6, 4, 7, 7, 5, 6], seed=5))
    expected = patch_sweep(model, task, "resid_pre")
    run = model.run
    rows = []

    def scarce(batch: Any, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(batch.tokens))
        if len(batch.tokens) > fits:
            raise fault
        return run(batch, *args, **kwargs)

    monkeypatch.setattr(model, "run", scarce)
    got = patch_sweep(model, task, "resid_pre")
    torch.testing.assert_close(got.per_pair, expected.per_pair, equal_nan=True)
    assert max(rows) > fits
    refused = [count for count in rows if count > fits]
    assert len(refused) <= 6  # what did not fit is remembered


def test_one_row_that_does_not_fit_is_an_error_that_the_user_can_fix(tiny_models, monkeypatch):
    model = tiny_models.load("gpt2")
    task = as_task(random_pairs([6, 5]))
    engine = Engine(model, task)

    def never(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(model, "run", never)
        with pytest.raises(MemoryLimitError, match="one prompt of 6 tokens") as caught:
            patch_sweep(model, task, "resid_pre", engine=engine)
        assert caught.value.cure
    patch_sweep(model, task, "resid_pre", engine=engine)


def test_other_faults_are_bugs(tiny_models, monkeypatch):
    model = tiny_models.load("gpt2")

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(model, "run", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        patch_sweep(model, as_task(random_pairs([5, 5])), "resid_pre")


@pytest.mark.parametrize(
    "site",
    ["resid_pre", "resid_post", "attn_out", "mlp_out", "head_out", "head_out_by_position", "q"],
)
@pytest.mark.parametrize("name", ["gpt2", "neox", "native"])
def test_the_work_counted_is_the_work_estimated(tiny_models, name, site):
    model = tiny_models.load(name)
    task = as_task(random_pairs([6, 4, 7], seed=6))
    engine = Engine(model, task)
    for side in ("clean", "corrupted"):
        engine.baseline(side)
    estimate = estimate_sweep(engine, site, "denoising")
    patch_sweep(model, task, site, engine=engine)  # caches what it needs
    before = engine.meter.spent
    cost = patch_sweep(model, task, site, engine=engine).cost.forward_equivalents
    assert cost == pytest.approx(engine.meter.spent - before)
    assert cost == pytest.approx(estimate)


def test_a_sweep_needs_few_cached_passes(tiny_models, monkeypatch):
    """A site is cached at all layers in one pass, together with logits, keys and values."""
    model = tiny_models.load("gpt2")
    task = as_task(random_pairs([5, 5]))
    for site, passes in (("resid_pre", 2), ("resid_post", 3), ("head_out", 4), ("mlp_out", 5)):
        engine = Engine(model, task)
        cost = patch_sweep(model, task, site, engine=engine).cost.forward_equivalents
        assert (cost - estimate_sweep(engine, site, "denoising")) / len(task) <= passes + 1e-9


def test_reusing_an_engine_costs_no_second_caching(tiny_models):
    model = tiny_models.load("gpt2")
    task = as_task(random_pairs([6, 6]))
    engine = Engine(model, task)
    first = patch_sweep(model, task, "resid_pre", engine=engine)
    second = patch_sweep(model, task, "resid_pre", engine=engine)
    assert second.cost.forward_equivalents == pytest.approx(
        first.cost.forward_equivalents - 2 * len(task)
    )
    torch.testing.assert_close(second.per_pair, first.per_pair, atol=0, rtol=0)


def test_shortcuts_change_the_cost_and_not_the_numbers(tiny_models, monkeypatch):
    model = tiny_models.load("gpt2", dtype="float64")
    task = as_task(random_pairs([7, 6, 7], seed=7, changed=1))
    for site in (
        "resid_pre",
        "resid_mid",
        "attn_out",
        "mlp_out",
        "head_out",
        "head_out_by_position",
    ):
        quick = patch_sweep(model, task, site)
        with monkeypatch.context() as patch:
            patch.setattr(model, "abilities", Abilities())
            slow = patch_sweep(model, task, site)
        torch.testing.assert_close(slow.per_pair, quick.per_pair, equal_nan=True)
        assert slow.cost.forward_equivalents > quick.cost.forward_equivalents


def test_a_budget_that_does_not_reach_stops_before_the_rows(tiny_models):
    model = tiny_models.load("gpt2")
    task = as_task(random_pairs([6, 6]))
    engine = Engine(model, task, meter=Meter(limit=5.0))
    with pytest.raises(BudgetError, match="resid_pre denoising needs"):
        patch_sweep(model, task, "resid_pre", engine=engine)
    assert engine.meter.spent <= 5.0


def test_progress_is_reported_and_reaches_the_estimate(tiny_models):
    reports: list[tuple[float, float, str]] = []
    model = tiny_models.load("gpt2")
    task = as_task(random_pairs([6, 5, 7]))
    patch_sweep(
        model,
        task,
        "head_out_by_position",
        progress=lambda spent, total, label: reports.append((spent, total, label)),
    )
    assert reports[-1][2] == "head_out_by_position denoising"
    assert all(0 <= spent <= total + 1e-9 for spent, total, _ in reports)
    assert reports[-1][0] == pytest.approx(reports[-1][1])
