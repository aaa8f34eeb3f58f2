"""A screened sweep: what is measured is exact, what is not is said, and the sample bounds what was missed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from discovery import load_model, load_task, patch_sweep
from discovery.engine import Engine
from discovery.methods import screen
from discovery.methods.screen import upper_share
from tests.discovery.tiny import as_task, random_pairs
from tests.handbuilt.models import build
from tests.handbuilt.truth import known


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few cells that a tiny grid has a rest."""
    monkeypatch.setattr(screen, "LEAST", 3)
    monkeypatch.setattr(screen, "SAMPLE", 4)


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "attn_out", "mlp_out", "head_out", "head_out_by_position", "q", "v"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_measured_cells_are_the_whole_sweeps(shelf: Any, few: None, name: str, site: Any, direction: Any) -> None:
    model, task = shelf.load(name, dtype="float64"), as_task(random_pairs((6, 4, 7), seed=5))
    whole = patch_sweep(model, task, site, direction=direction)
    some = patch_sweep(model, task, site, direction=direction, screen=True)
    report = some.screen
    assert report is not None
    measured = ~some.values.isnan() | whole.values.isnan()
    torch.testing.assert_close(some.values[measured], whole.values[measured], equal_nan=True)
    pairs = ~some.per_pair.isnan()
    torch.testing.assert_close(some.per_pair[pairs], whole.per_pair[pairs])
    assert report.rest == int((~measured).sum())
    still = whole.per_pair == (whole.metric_corrupted if direction == "denoising" else whole.metric_clean).reshape(
        -1, *[1] * some.values.ndim
    )
    assert not (still | whole.per_pair.isnan()).all(0)[~measured].any()  # what nothing can change is known to be 0, not left out
    assert report.estimates.shape == whole.values.shape
    if report.rest:
        left = report.estimates[~measured].abs().max()
        assert report.ranked >= 3
        assert report.sampled == 4
        assert int((report.estimates[measured].abs() >= left).sum()) >= 3  # none that was left out had a place among the first
        assert 0 < report.missed <= 1
        assert "were not" in some.warnings[-1]


def test_a_grid_smaller_than_the_screen_is_measured_whole(shelf: Any) -> None:
    model, task = shelf.load("gpt2"), as_task(random_pairs((4, 4), seed=1))
    whole, all_the_same = (patch_sweep(model, task, "head_out", screen=screened) for screened in (False, True))
    torch.testing.assert_close(all_the_same.values, whole.values)
    assert all_the_same.screen is not None
    assert (all_the_same.screen.rest, all_the_same.screen.missed) == (0, 0.0)


def test_it_costs_less_than_a_large_grid(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=31, n_positions=24, n_embd=32, n_layer=6, n_head=8)).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    engine = Engine(model, as_task(random_pairs((24, 24), seed=1, changed=20)))
    whole, some = (patch_sweep(model, engine.task, "head_out_by_position", screen=screened, engine=engine) for screened in (False, True))
    assert some.screen is not None
    assert some.screen.rest > 0.5 * whole.values.numel()
    assert some.cost.forward_equivalents < 0.3 * whole.cost.forward_equivalents


def test_the_sample_is_drawn_by_the_seed(shelf: Any, few: None) -> None:
    model, task = shelf.load("gpt2"), as_task(random_pairs((12,) * 3, seed=1))
    drawn = [patch_sweep(model, task, "resid_pre", screen=True, seed=seed).values.isnan() for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("name", ["induction", "or_softmax", "opposing_030"])
def test_the_heads_of_a_known_circuit_are_ranked_first(name: str, tmp_path: Path, few: None) -> None:
    model = load_model(build(name).save(tmp_path / "model"))
    task = load_task(tmp_path / "model" / "task.jsonl", model, pairs=24)
    alone = {}
    for direction in ("denoising", "noising"):
        whole = patch_sweep(model, task, "head_out", direction=direction)  # type: ignore[arg-type]  # a direction
        found = patch_sweep(model, task, "head_out", direction=direction, screen=True)  # type: ignore[arg-type]  # a direction
        assert found.screen is not None
        for layer, head in (whole.values.abs() >= 0.1).nonzero().tolist():
            alone[f"a{layer}.h{head}", direction] = float(found.screen.estimates[layer, head])
    assert {node for node, _ in alone} <= set(known(name, "resample").nodes)
    assert all(abs(estimate) > 0.02 for estimate in alone.values()), alone


@given(st.integers(0, 30), st.integers(1, 60))
def test_the_bound_is_clopper_and_pearsons(found: int, drawn: int) -> None:
    found = min(found, drawn)
    expected = binomtest(found, drawn, alternative="less").proportion_ci(0.95, method="exact").high
    assert upper_share(found, drawn) == pytest.approx(expected)


def test_an_empty_sample_of_a_rest_of_59_bounds_it_by_5_percent() -> None:
    assert upper_share(0, screen.SAMPLE) < 0.05
    assert upper_share(0, screen.SAMPLE - 1) > 0.05
