"""Cached runs: each prompt's own values, loaded in few passes, within memory and budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery.backends.base import MACS_PER_BATCH, Batch
from discovery.engine import SIDES, Engine, Meter, Rows, prompt_macs
from discovery.engine.block import Block
from discovery.errors import BudgetError
from discovery.methods.patching import patch_sweep
from discovery.sites import Site
from tests.discovery.engine.runs import logits_of


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", ["resid_pre", "z", "mlp_out", "pattern", "k"])
def test_cached_activations_are_each_prompts_own(tiny_models, side, kind):
    model, task = tiny_models.load("llama", dtype="float64"), as_task(random_pairs([6, 4, 7]))
    ((_, block),) = Engine(model, task).blocks()
    for layer in (2, 0):
        site = Site(kind, layer)
        cached = block.activation(side, site)
        for row, pair in enumerate(task.pairs):
            alone = logits_of(model, getattr(pair, side), [site]).activations[site][0]
            mine = (
                cached[row, :, : len(pair.clean), : len(pair.clean)]
                if kind == "pattern"
                else cached[row, : len(pair.clean)]
            )
            torch.testing.assert_close(mine, alone, atol=1e-7, rtol=1e-7)


def test_one_pass_loads_a_site_at_every_layer_the_logits_and_the_prefix(tiny_models, monkeypatch):
    model = tiny_models.load("gpt2")
    calls: list[int] = []
    run = model.run

    def counted(batch: Batch, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(batch.tokens))
        return run(batch, *args, **kwargs)

    monkeypatch.setattr(model, "run", counted)
    engine = Engine(model, as_task(random_pairs([5, 4])))
    ((_, block),) = engine.blocks()
    block.activation("clean", Site("z", 2))
    assert calls == [2]
    for kind in ("z", "resid_pre", "resid_mid", "attn_out", "mlp_out"):
        block.activation("clean", Site(kind, 0))
    block.activation("clean", Site("resid_post", 2))  # the end of the stream
    block.baseline("clean")
    block.measure(Rows("clean", torch.tensor([0]), torch.tensor([3]), start=1))
    assert calls == [2, 1]  # one cached pass, and the one row
    assert engine.meter.passes == 2
    calls.clear()
    # A site that few ask for is loaded at every layer, together with the shared sites.
    block.activation("corrupted", Site("q", 1))
    block.activation("corrupted", Site("q", 0))
    assert calls == [2]
    block.load("corrupted", [Site("z", 0), Site("mlp_out", 1), Site("resid_post", 2)])
    block.baseline("corrupted")
    assert calls == [2]
    block.activation("corrupted", Site("k", 1))  # later sites are loaded alone
    assert calls == [2, 2]


def test_all_sweeps_of_a_task_share_one_cached_pass_a_side(tiny_models, monkeypatch):
    model, task = tiny_models.load("gpt2"), as_task(random_pairs([5, 4]))
    passes: list[Any] = []
    cache = Block._cache

    def counted(self: Any, side: Any, sites: Any) -> None:
        passes.append(side)
        cache(self, side, sites)

    monkeypatch.setattr(Block, "_cache", counted)
    engine = Engine(model, task)
    for site in (
        "resid_pre",
        "attn_out",
        "mlp_out",
        "head_out",
        "resid_mid",
        "resid_post",
        "head_out_by_position",
    ):
        for direction in ("denoising", "noising"):
            patch_sweep(model, task, site, direction=direction, engine=engine)  # type: ignore[arg-type]
    assert sorted(passes) == ["clean", "corrupted"]


def test_padding_counts_as_work(tiny_models):
    """A prompt beside a longer one is computed to that one's end, and all of it is counted."""
    model = tiny_models.load("gpt2")
    engine = Engine(model, as_task(random_pairs([3, 9])))
    engine.baseline("clean")
    assert engine.meter.spent == pytest.approx(
        1 + prompt_macs(model.info, 9) / prompt_macs(model.info, 3)
    )


def test_a_budget_holds_for_cached_passes_too(tiny_models):
    model, task = tiny_models.load("gpt2"), as_task(random_pairs([5] * 4))
    engine = Engine(model, task, meter=Meter(limit=7.9))
    engine.baseline("clean")
    with pytest.raises(BudgetError):
        engine.baseline("corrupted")
    assert engine.meter.spent == pytest.approx(4)
    assert len(engine.baseline("clean")) == 4  # what is cached stays


def test_after_memory_ran_out_no_batch_is_larger(tiny_models):
    """A later window that fails at more rows does not raise the limit again."""
    ((_, block),) = Engine(tiny_models.load("native"), as_task(random_pairs([5, 5]))).blocks()
    fault = MemoryError()
    assert [block.halve_batch(count, 5, fault) for count in (24, 3, 12, 2)] == [12, 1, 1, 1]
    assert block.rows_that_fit(0, 5) == 1


def test_a_batch_is_limited_by_its_work(tiny_models, monkeypatch):
    """So that whoever waits for the end of a batch waits for about a second at most."""
    model, task = tiny_models.load("gpt2"), as_task(random_pairs([5] * 7))
    expected = Engine(model, task).baseline("clean")
    macs = prompt_macs(model.info, 5)
    monkeypatch.setitem(MACS_PER_BATCH, "cpu", 2 * macs)
    engine = Engine(model, task)
    ((_, block),) = engine.blocks()
    assert block.rows_that_fit(0, 5) == 2
    assert block.rows_that_fit(0, 5, macs // 3) == 6
    torch.testing.assert_close(engine.baseline("clean"), expected)
    assert engine.meter.passes == 4
    rows = Rows("clean", torch.arange(7), torch.zeros(7, dtype=torch.long), start=2)
    torch.testing.assert_close(block.measure(rows), expected)
    # Rows that enter at the last of three layers are a third of the work.
    assert engine.meter.passes in (5, 6)
    monkeypatch.setitem(MACS_PER_BATCH, "cpu", 1)
    assert block.rows_that_fit(0, 5) == 1
