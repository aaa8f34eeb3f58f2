"""The engine: its blocks, caches and baselines, and rows that are what a full forward pass gives."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery.backends.base import Batch
from discovery.engine import Engine, Meter, Rows, Window, other_side, prompt_macs
from discovery.engine.block import MAX_COLUMNS, Block
from discovery.errors import BudgetError, Interrupted, MeasurementError, MemoryLimitError
from discovery.interventions import Edit
from discovery.methods.patching import patch_sweep
from discovery.sites import Site
from tests.oracles.mean_reference import mean_by_definition
from tests.oracles.patching import METRICS, metric_of

SIDES = ("clean", "corrupted")


def logits_of(model: Any, tokens: Any, reads: Any = (), edits: Any = ()) -> Any:
    return model.run(
        Batch(torch.tensor([list(tokens)]), torch.tensor([len(tokens) - 1])), reads, edits
    )


def small(model: Any, task: Any, most: int) -> Engine:
    """An engine whose blocks hold at most so many pairs."""
    found = None
    for memory in range(500, 10**7, 500):
        try:
            engine = Engine(model, task, memory=memory)
        except MemoryLimitError:
            continue
        if max(len(block.prompts) for _, block in engine.blocks()) > most:
            break
        found = engine
    assert found is not None
    return found


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["gpt2", "rotary"])
def test_baselines_are_each_prompts_own(tiny_models, name, metric):
    model, task = (
        tiny_models.load(name, dtype="float64"),
        as_task(random_pairs([6, 4, 7, 5], seed=1, sets=3)),
    )
    clean = [logits_of(model, pair.clean).logits[0] for pair in task.pairs]
    for engine in (Engine(model, task, metric=metric), small(model, task, 2)):
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


@pytest.mark.parametrize("most", [1, 2, 3])
def test_blocks_cut_the_pairs_in_order(tiny_models, most):
    task = as_task(random_pairs([6, 4, 7, 5, 3]))
    engine = small(tiny_models.load("native"), task, most)
    blocks = list(engine.blocks())
    assert [pair for _, block in blocks for pair in block.prompts.pairs] == list(task.pairs)
    assert [first for first, _ in blocks] == [
        sum(len(block.prompts) for _, block in blocks[:n]) for n in range(len(blocks))
    ]
    assert all(len(block.prompts) <= most for _, block in blocks)


def test_a_block_is_kept_until_another_is_asked_for(tiny_models):
    task = as_task(random_pairs([5] * 4))
    engine = Engine(tiny_models.load("native"), task)
    assert next(engine.blocks())[1] is next(engine.blocks())[1]
    engine = small(tiny_models.load("native"), task, 2)
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


def test_one_pass_brings_a_site_at_every_layer_the_logits_and_the_prefix(tiny_models, monkeypatch):
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
    block.activation("clean", Site("resid_post", 2))  # the stream's end; its starts are resid_pre
    block.baseline("clean")
    block.measure(Rows("clean", torch.tensor([0]), torch.tensor([3]), start=1))
    assert calls == [2, 1]  # one cached pass, and the one row
    assert engine.meter.passes == 2
    calls.clear()
    block.activation(
        "corrupted", Site("q", 1)
    )  # what few ask for comes at every layer, and with the first pass the rest
    block.activation("corrupted", Site("q", 0))
    assert calls == [2]
    block.load("corrupted", [Site("z", 0), Site("mlp_out", 1), Site("resid_post", 2)])
    block.baseline("corrupted")
    assert calls == [2]
    block.activation("corrupted", Site("k", 1))  # a kind that comes later comes alone
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


def test_a_baseline_is_computed_once_however_many_the_blocks(tiny_models):
    engine = Engine(tiny_models.load("gpt2"), as_task(random_pairs([5, 4, 6, 5, 4, 6])))
    engine._block_bounds = [(0, 3), (3, 6)]
    first = engine.baseline("clean")
    spent = engine.meter.spent
    assert torch.equal(engine.baseline("clean"), first)
    assert engine.meter.spent == spent


def test_an_unchanged_row_is_the_baseline(tiny_models):
    """From any layer, with any first position, after the attention too."""
    model, task = (
        tiny_models.load("gpt2", dtype="float64"),
        as_task(random_pairs([6, 4, 7], seed=2)),
    )
    for metric in METRICS:
        ((_, block),) = Engine(model, task, metric=metric).blocks()
        for side in SIDES:
            for start in range(model.info.n_layers + 1):
                rows = Rows(
                    side, torch.tensor([0, 1, 2, 2]), torch.tensor([0, 2, 5, 6]), start=start
                )  # type: ignore[arg-type]
                torch.testing.assert_close(
                    block.measure(rows), block.baseline(side)[[0, 1, 2, 2]], atol=1e-7, rtol=1e-7
                )  # type: ignore[arg-type]


@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from(["gpt2", "native"]),
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.integers(1, 8),
    st.integers(0, 2),
    st.sampled_from(METRICS),
    st.integers(0, 10**6),
)
def test_changed_rows_are_full_passes(tiny_models, name, lengths, count, start, metric, seed):
    """An edit of z from each row's first position on, measured in windows, against each prompt run by itself."""
    model, pairs = tiny_models.load(name, dtype="float64"), random_pairs(lengths, seed, sets=2)
    layer = min(start, model.info.n_layers - 1)
    ((_, block),) = Engine(model, as_task(pairs), metric=metric).blocks()
    rng = torch.Generator().manual_seed(seed)
    pair = torch.randint(len(pairs), (count,), generator=rng)
    first = (torch.rand(count, generator=rng) * block.prompts.length[pair]).long()
    site = Site("z", layer)
    values = torch.randn(
        count,
        block.prompts.width,
        model.info.n_heads,
        model.info.d_head,
        generator=rng,
        dtype=torch.float64,
    )
    from_first = torch.arange(block.prompts.width) >= first.unsqueeze(1)

    def edits(window: Window) -> list[Edit]:
        span = slice(window.first, window.end)
        return [
            Edit(site, values[window.index, span], from_first[window.index, span].unsqueeze(-1))
        ]

    rows = Rows("clean", pair, first, start=layer, edits=edits)
    expected_work = block.estimate(rows)
    block.load("clean", [Site("resid_pre", layer)])  # whose pass is counted apart
    before = block.meter.spent
    got = block.measure(rows)
    assert block.meter.spent - before == pytest.approx(expected_work)
    for row in range(count):
        tokens = pairs[int(pair[row])].clean
        edit = Edit(
            site,
            values[row : row + 1, : len(tokens)],
            from_first[row : row + 1, : len(tokens)].unsqueeze(-1),
        )
        logits = logits_of(model, tokens, edits=[edit]).logits[0]
        expected = metric_of(
            metric, logits, pairs[int(pair[row])], logits_of(model, tokens).logits[0]
        )
        assert float(got[row]) == pytest.approx(expected, abs=1e-6, rel=1e-6)


def test_sets_too_large_for_columns_use_the_whole_vocabulary(tiny_models, monkeypatch):
    model, task = (
        tiny_models.load("gpt2", dtype="float64"),
        as_task(random_pairs([5, 5], seed=3, sets=3)),
    )
    rows = Rows("clean", torch.tensor([0, 1]), torch.tensor([1, 1]), start=1)
    ((_, block),) = Engine(model, task).blocks()
    by_columns, work = block.measure(rows), block.estimate(rows)
    monkeypatch.setattr("discovery.engine.block.MAX_COLUMNS", 1)
    torch.testing.assert_close(block.measure(rows), by_columns)
    assert block.estimate(rows) > work
    assert MAX_COLUMNS > 1


def test_padding_counts_as_work(tiny_models):
    """A prompt beside a longer one is computed to its end: the count says what was done."""
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
    assert len(engine.baseline("clean")) == 4  # what was cached is still there


def test_means_are_those_of_their_definition(tiny_models):
    model, pairs = (
        tiny_models.load("gpt2", dtype="float64"),
        random_pairs([5] * 9 + [4, 6], labelled=True),
    )
    for engine in (Engine(model, as_task(pairs)), small(model, as_task(pairs), 3)):
        sites = [Site("z", 1), Site("mlp_out", 0)]
        engine.prepare_means(sites)
        for site in sites:
            own = [logits_of(model, pair.corrupted, [site]).activations[site][0] for pair in pairs]
            for first, block in engine.blocks():
                means = engine.reference_values("mean", first, block, site)
                for row in range(len(block.prompts)):
                    for position in range(len(pairs[first + row].clean)):
                        expected, _, _ = mean_by_definition(pairs, own, first + row, position)
                        torch.testing.assert_close(
                            means[row, position], expected, atol=1e-7, rtol=1e-7
                        )


def test_other_references(tiny_models):
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


def test_an_interruption_leaves_the_engine_usable(tiny_models):
    model, task = tiny_models.load("gpt2"), as_task(random_pairs([6, 5, 7]))
    count = 0

    def stop(done: float, total: float, label: str) -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise Interrupted

    engine = Engine(model, task, meter=Meter(progress=stop))
    ((_, block),) = engine.blocks()
    rows = Rows("clean", torch.tensor([0, 1, 2] * 4), torch.tensor([0, 1, 2] * 4), start=1)
    block.memory = 1  # one row a batch
    with pytest.raises(Interrupted):
        block.measure(rows)
    torch.testing.assert_close(
        block.measure(rows), block.baseline("clean")[rows.pair], atol=1e-4, rtol=1e-4
    )


def test_tasks_and_metrics_that_cannot_be_measured(tiny_models):
    model = tiny_models.load("native")
    with pytest.raises(MeasurementError, match="has no pairs"):
        Engine(model, as_task(()))
    with pytest.raises(MeasurementError, match="metric 'accuracy' is not known"):
        Engine(model, as_task(random_pairs([4])), metric="accuracy")  # type: ignore[arg-type]
    with pytest.raises(MemoryLimitError, match="A memory limit of 10 bytes") as caught:
        Engine(model, as_task(random_pairs([4])), memory=10)
    assert "memory limit" in caught.value.cure


@pytest.mark.parametrize("at", [1, 2, 3])
def test_what_is_no_number_is_not_taken_for_a_cell_that_a_pair_lacks(tiny_models, monkeypatch, at):
    """float16 overflows; the third pass is of changed rows."""
    model = tiny_models.load("gpt2")
    run, passes = model.run, []

    def overflow(*given, **named):
        passes.append(outcome := run(*given, **named))
        return (
            replace(
                outcome,
                logits=outcome.logits.masked_fill(
                    torch.arange(len(outcome.logits))[:, None] == 1, torch.nan
                ),
            )
            if (len(passes) == at)
            else outcome
        )

    monkeypatch.setattr(model, "run", overflow)
    with pytest.raises(
        MeasurementError, match=r"NaN or infinite on 1 of \d+ rows in float32"
    ) as caught:
        patch_sweep(model, as_task(random_pairs([6, 6, 6])), "resid_pre")
    assert "bfloat16" in caught.value.cure


def test_a_prompt_of_one_token(tiny_models):
    model, task = (
        tiny_models.load("gpt2", dtype="float64"),
        as_task(random_pairs([1, 1], same_end=False)),
    )
    ((_, block),) = Engine(model, task).blocks()
    rows = Rows("clean", torch.tensor([0, 1]), torch.tensor([0, 0]), start=1)
    torch.testing.assert_close(block.measure(rows), block.baseline("clean"))


def test_odds_and_ends():
    assert other_side("clean") == "corrupted"
    assert other_side("corrupted") == "clean"


def test_after_memory_ran_out_no_batch_is_larger(tiny_models):
    """A later window that fails at more rows does not raise the limit again."""
    ((_, block),) = Engine(tiny_models.load("native"), as_task(random_pairs([5, 5]))).blocks()
    fault = MemoryError()
    assert [block.halve_batch(count, 5, fault) for count in (24, 3, 12, 2)] == [12, 1, 1, 1]
    assert block.rows_that_fit(0, 5) == 1
