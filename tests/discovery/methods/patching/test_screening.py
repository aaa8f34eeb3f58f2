"""A screened sweep: measured cells are exact, and the random sample bounds what was missed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import hypergeom

from benchmarks.known_circuits.hand_built import build_known_circuit
from benchmarks.known_circuits.truth import load_truth
from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery import load_model, load_task, patch_sweep
from discovery.engine import Engine
from discovery.methods.patching import estimate_sweep, plan_sweep, screening
from discovery.methods.patching.screening import bound_missed_share
from discovery.sites import Direction


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few cells that a tiny grid has a rest."""
    monkeypatch.setattr(screening, "MIN_RANKED", 3)
    monkeypatch.setattr(screening, "SAMPLE_SIZE", 4)


@pytest.mark.parametrize(
    "site",
    [
        "resid_pre",
        "resid_post",
        "attn_out",
        "mlp_out",
        "head_out",
        "head_out_by_position",
        "q",
        "v",
    ],
)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_measured_cells_are_the_whole_sweeps(
    tiny_models: Any, few: None, name: str, site: Any, direction: Any
) -> None:
    model = tiny_models.load(name, dtype="float64")
    task = as_task(random_pairs((6, 4, 7), seed=5))
    whole = patch_sweep(model, task, site, direction=direction)
    some = patch_sweep(model, task, site, direction=direction, screen=True)
    report = some.screen
    assert report is not None
    measured = ~some.values.isnan() | whole.values.isnan()
    torch.testing.assert_close(some.values[measured], whole.values[measured], equal_nan=True)
    pairs = ~some.per_pair.isnan()
    torch.testing.assert_close(some.per_pair[pairs], whole.per_pair[pairs])
    assert report.n_unmeasured == int((~measured).sum())
    still = whole.per_pair == (
        whole.metric_corrupted if direction == "denoising" else whole.metric_clean
    ).reshape(-1, *[1] * some.values.ndim)
    assert (
        not (still | whole.per_pair.isnan()).all(0)[~measured].any()
    )  # what nothing can change is known to be 0, not left out
    assert report.estimates.shape == whole.values.shape
    if report.n_unmeasured:
        largest_unmeasured = report.estimates[~measured].abs().max()
        assert report.n_ranked >= 3
        assert report.n_sampled == 4
        assert (
            int((report.estimates[measured].abs() >= largest_unmeasured).sum()) >= 3
        )  # none that was left out had a place among the first
        assert 0 < report.missed_share <= 1
        assert "were not" in some.warnings[-1]


@pytest.mark.parametrize("site", ["resid_pre", "mlp_out"])
def test_a_screened_sweep_is_planned_as_such(tiny_models: Any, few: None, site: Any) -> None:
    """A grid is screened if it is too expensive and a screen, at a cell's mean cost, is cheaper."""
    model = tiny_models.load("llama")
    task = as_task(random_pairs([12] * 3, seed=5))
    engine = Engine(model, task)
    engine.baseline("clean"), engine.baseline("corrupted")
    rows = estimate_sweep(engine, site, "noising")
    assert (
        plan_sweep(engine, site, "noising", None)
        == plan_sweep(engine, site, "noising", rows)
        == (rows, False)
    )
    planned, screened = plan_sweep(engine, site, "noising", 1.0)
    assert screened == (planned < rows)
    before = engine.meter.spent
    patch_sweep(model, task, site, direction="noising", screen=screened, engine=engine)
    assert engine.meter.spent - before == pytest.approx(planned, rel=0.4 if screened else 1e-6)


def test_a_grid_smaller_than_the_screen_is_measured_whole(tiny_models: Any) -> None:
    model = tiny_models.load("gpt2")
    task = as_task(random_pairs((4, 4), seed=1))
    whole, all_the_same = (
        patch_sweep(model, task, "head_out", screen=screened) for screened in (False, True)
    )
    torch.testing.assert_close(all_the_same.values, whole.values)
    assert all_the_same.screen is not None
    assert (all_the_same.screen.n_unmeasured, all_the_same.screen.missed_share) == (0, 0.0)


def test_it_costs_less_than_a_large_grid(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=31, n_positions=24, n_embd=32, n_layer=6, n_head=8)
    ).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    engine = Engine(model, as_task(random_pairs((24, 24), seed=1, changed=20)))
    whole, some = (
        patch_sweep(model, engine.task, "head_out_by_position", screen=screened, engine=engine)
        for screened in (False, True)
    )
    assert some.screen is not None
    assert some.screen.n_unmeasured > 0.5 * whole.values.numel()
    assert some.cost.forward_equivalents < 0.3 * whole.cost.forward_equivalents


def test_the_sample_is_drawn_by_the_seed(tiny_models: Any, few: None) -> None:
    model = tiny_models.load("gpt2")
    task = as_task(random_pairs((12,) * 3, seed=1))
    drawn = [
        patch_sweep(model, task, "resid_pre", screen=True, seed=seed).values.isnan()
        for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("name", ["induction", "or_softmax", "opposing_030"])
def test_the_heads_of_a_known_circuit_are_ranked_first(
    name: str, tmp_path: Path, few: None
) -> None:
    model = load_model(build_known_circuit(name).save(tmp_path / "model"))
    task = load_task(tmp_path / "model" / "task.jsonl", model, pairs=24)
    alone = {}
    directions: tuple[Direction, ...] = ("denoising", "noising")
    for direction in directions:
        whole = patch_sweep(model, task, "head_out", direction=direction)
        sweep = patch_sweep(model, task, "head_out", direction=direction, screen=True)
        assert sweep.screen is not None
        for layer, head in (whole.values.abs() >= 0.1).nonzero().tolist():
            alone[f"a{layer}.h{head}", direction] = float(sweep.screen.estimates[layer, head])
    assert {node for node, _ in alone} <= set(load_truth(name, "resample").nodes)
    assert all(abs(estimate) > 0.02 for estimate in alone.values()), alone


@pytest.mark.parametrize(
    ("drawn", "rest"), [(59, 6), (59, 11), (59, 41), (59, 441), (20, 100), (3, 2)]
)
def test_the_bound_is_wrong_one_time_in_twenty_at_most(drawn: int, rest: int) -> None:
    """The bound fails with a chance of at most 5%, however many cells have a sizeable effect."""
    claims = [bound_missed_share(counts, drawn, rest) * rest for counts in range(drawn + 1)]
    for sizeable in range(drawn + rest + 1):
        counts = range(max(0, sizeable - rest), min(drawn, sizeable) + 1)
        wrong = sum(
            hypergeom.pmf(k, drawn + rest, sizeable, drawn)
            for k in counts
            if sizeable - k > claims[k] + 1e-9
        )
        assert wrong <= 0.05 + 1e-9


def test_bounds_by_hand() -> None:
    assert bound_missed_share(0, 59, 6) == pytest.approx(1 / 6), (
        "one hidden cell in 65 is missed by 59 draws with a chance of 6/65, two with 0.7%"
    )
    assert bound_missed_share(5, 5, 10) == 1.0
    assert bound_missed_share(0, 59, 6_000) == pytest.approx(1 - 0.05 ** (1 / 59), abs=2e-3), (
        "many cells: Clopper and Pearson's"
    )


def test_if_nothing_normalises_nothing_is_bounded(few: None, tmp_path: Path) -> None:
    model = load_model(build_known_circuit("induction").save(tmp_path / "model"))
    pair = {"clean": [0, 5, 6, 7, 8, 5], "corrupted": [0, 7, 6, 5, 8, 5], "answer": 6, "wrong": 8}
    turned = {"clean": pair["corrupted"], "corrupted": pair["clean"], "answer": 6, "wrong": 8}
    sweep = patch_sweep(
        model, load_task([pair, turned], model), "head_out_by_position", screen=True
    )
    assert sweep.screen is not None
    assert sweep.screen.n_unmeasured > 0
    assert sweep.screen.missed_share == 1.0
    assert "nothing bounds their effects" in sweep.screen.caution


def test_a_grid_that_is_measured_whole_pays_no_gradient(tmp_path: Path) -> None:
    model = load_model(build_known_circuit("induction").save(tmp_path / "model"))
    task = load_task(tmp_path / "model" / "task.jsonl", model, pairs=6)
    whole = patch_sweep(model, task, "head_out")
    screened = patch_sweep(model, task, "head_out", screen=True)
    assert screened.cost.forward_equivalents == whole.cost.forward_equivalents
    assert torch.equal(screened.values, whole.values)
    assert screened.screen is not None
    assert (screened.screen.n_unmeasured, screened.screen.missed_share) == (0, 0.0)


@pytest.mark.parametrize("site", ["mlp_out", "head_out_by_position"])
def test_only_the_cells_that_are_asked_for_are_measured(
    tiny_models: Any, few: None, site: Any
) -> None:
    """With and without a screen, each of them as in the whole sweep."""
    model = tiny_models.load("gpt2", dtype="float64")
    task = as_task(random_pairs((6, 6, 6), seed=5))
    whole = patch_sweep(model, task, site)
    within = torch.zeros((*whole.values.shape[:-1], 1), dtype=torch.bool)
    within[1] = True
    asked = within.expand(whole.values.shape)
    some = patch_sweep(model, task, site, within=within)
    torch.testing.assert_close(some.values[asked], whole.values[asked], equal_nan=True)
    assert bool(some.values[~asked].isnan().all())
    screened = patch_sweep(model, task, site, within=within, screen=True)
    assert screened.screen is not None
    assert bool(screened.values[~asked].isnan().all())
    known = ~screened.values.isnan()
    torch.testing.assert_close(screened.values[known], whole.values[known])
    assert screened.screen.n_unmeasured == int((asked & ~known).sum())
    engine = Engine(model, task)
    engine.baseline("clean"), engine.baseline("corrupted")
    assert estimate_sweep(engine, site, "denoising", within=within) < estimate_sweep(
        engine, site, "denoising"
    )


def test_a_limited_screen_measures_fewer_cells_and_keeps_its_sample(
    tiny_models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screening, "MIN_RANKED", 20)
    monkeypatch.setattr(screening, "SAMPLE_SIZE", 4)
    monkeypatch.setattr(screening, "MIN_RANKED_IF_LIMITED", 2)
    model = tiny_models.load("gpt2", dtype="float64")
    engine = Engine(model, as_task(random_pairs((12, 12, 12), seed=5, changed=8)))
    engine.baseline("clean"), engine.baseline("corrupted")

    def sweep(max_cost: float | None) -> tuple[int, int, float]:
        before = engine.meter.spent
        grid = patch_sweep(
            model,
            engine.task,
            "resid_pre",
            direction="noising",
            screen=True,
            max_cost=max_cost,
            engine=engine,
        )
        assert grid.screen is not None
        return grid.screen.n_ranked, grid.screen.n_sampled, engine.meter.spent - before

    sweep(None)  # caches
    free = sweep(None)
    least = sweep(1.0)
    limit = (free[2] + least[2]) / 2
    between = sweep(limit)
    assert free[0] == 20
    assert least[0] == 2
    assert 2 < between[0] < 20
    assert {free[1], least[1], between[1]} == {4}
    assert least[2] < between[2] <= limit * 1.1
