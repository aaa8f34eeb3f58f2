"""A block: changed rows give what a full forward pass of each prompt gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery.engine import SIDES, Engine, Meter, Rows, Window
from discovery.engine.block import MAX_COLUMNS
from discovery.errors import Interrupted, MeasurementError
from discovery.interventions import Edit
from discovery.methods.patching import patch_sweep
from discovery.sites import Site
from tests.discovery.engine.runs import logits_of
from tests.oracles.patching.activation_patching import METRICS, metric_of


def test_an_unchanged_row_is_the_baseline(tiny_models):
    """A row may start at any layer and any first position."""
    model = tiny_models.load("gpt2", dtype="float64")
    task = as_task(random_pairs([6, 4, 7], seed=2))
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
    """Rows with z edited from their first position on are compared with single full passes."""
    model = tiny_models.load(name, dtype="float64")
    pairs = random_pairs(lengths, seed, sets=2)
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
    expected_cost = block.estimate(rows)
    block.load("clean", [Site("resid_pre", layer)])  # its pass is not part of the estimate
    before = block.meter.spent
    metrics = block.measure(rows)
    assert block.meter.spent - before == pytest.approx(expected_cost)
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
        assert float(metrics[row]) == pytest.approx(expected, abs=1e-6, rel=1e-6)


def test_sets_too_large_for_columns_use_the_whole_vocabulary(tiny_models, monkeypatch):
    model = tiny_models.load("gpt2", dtype="float64")
    task = as_task(random_pairs([5, 5], seed=3, sets=3))
    rows = Rows("clean", torch.tensor([0, 1]), torch.tensor([1, 1]), start=1)
    ((_, block),) = Engine(model, task).blocks()
    by_columns = block.measure(rows)
    cost = block.estimate(rows)
    monkeypatch.setattr("discovery.engine.block.MAX_COLUMNS", 1)
    torch.testing.assert_close(block.measure(rows), by_columns)
    assert block.estimate(rows) > cost
    assert MAX_COLUMNS > 1


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


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_metric_that_is_nan_is_never_a_measurement(tiny_models, monkeypatch, at):
    """It may come from a cached pass or, in the third pass, from changed rows."""
    model = tiny_models.load("gpt2")
    run = model.run
    results = []

    def overflow(*args, **kwargs):
        result = run(*args, **kwargs)
        results.append(result)
        if len(results) != at:
            return result
        second_row = torch.arange(len(result.logits))[:, None] == 1
        return replace(result, logits=result.logits.masked_fill(second_row, torch.nan))

    monkeypatch.setattr(model, "run", overflow)
    with pytest.raises(
        MeasurementError, match=r"NaN or infinite on 1 of \d+ rows in float32"
    ) as caught:
        patch_sweep(model, as_task(random_pairs([6, 6, 6])), "resid_pre")
    assert "bfloat16" in caught.value.cure


def test_a_prompt_of_one_token(tiny_models):
    model = tiny_models.load("gpt2", dtype="float64")
    task = as_task(random_pairs([1, 1], same_end=False))
    ((_, block),) = Engine(model, task).blocks()
    rows = Rows("clean", torch.tensor([0, 1]), torch.tensor([0, 0]), start=1)
    torch.testing.assert_close(block.measure(rows), block.baseline("clean"))
