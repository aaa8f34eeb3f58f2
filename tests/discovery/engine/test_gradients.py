"""Attributions against finite differences along each cell's change, at interpolated inputs."""

from __future__ import annotations

from itertools import product
from typing import Any, get_args

import pytest
import torch

from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery.engine import SIDES, Engine, attribute_sites, estimate_attributions, prompt_macs
from discovery.errors import SiteError
from discovery.sites import BackendName, Site
from tests.oracles.patching.finite_differences import attribute_cell

KINDS = (
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "q",
    "k",
    "v",
    "z",
    "pattern",
)
MODELS = ("gpt2", "llama", "neox", "native", "attn_only")
METRICS = ("logit_difference", "kl_divergence", "probability_difference")
STEP = 1e-4
TOLERANCE = {"atol": 1e-7, "rtol": 1e-4}
# Some parts compute in single precision whatever the weights are: llama's norm, and the softmax of
# GPT-NeoX (TransformerLens replaces it).
ROUNDED_STEP = 2e-3
ROUNDED_TOLERANCE = {"atol": 3e-3, "rtol": 2e-2}
ROUNDED = {("llama", "transformerlens"), ("llama", "nnsight"), ("neox", "nnsight")}


def block_of(model: Any, lengths: tuple[int, ...], metric: Any) -> Any:
    engine = Engine(model, as_task(random_pairs(lengths, seed=3, sets=2)), metric=metric)
    return next(iter(engine.blocks()))[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", get_args(BackendName)[1:])
def test_the_slope_along_each_cells_change(
    tiny_models: Any, backend: BackendName, name: str, kind: Any
) -> None:
    model = tiny_models.load(name, backend, "float64")
    is_rounded = (name, backend) in ROUNDED
    number = MODELS.index(name) + KINDS.index(kind)
    metric = METRICS[number % 3]
    base = SIDES[number % 2]
    steps = 1 + number % 2
    block = block_of(model, (5, 3, 6), metric)
    if kind == "pattern" and not model.abilities.pattern:
        pytest.skip("this backend cannot edit the pattern of this model")
    try:
        model.require_site(Site(kind, 0))
    except SiteError:
        with pytest.raises(SiteError):
            attribute_sites(block, base, kind, steps)
        return
    estimates = attribute_sites(block, base, kind, steps)
    heads = range(estimates.shape[3]) if estimates.ndim == 4 else (None,)
    step_size = ROUNDED_STEP if is_rounded else STEP
    tolerance = ROUNDED_TOLERANCE if is_rounded else TOLERANCE
    for layer, position, head in product(
        range(model.info.n_layers), range(block.prompts.width), heads
    ):
        expected = attribute_cell(
            block, base, Site(kind, layer), position, head, steps=steps, step_size=step_size
        )
        cell = estimates[:, layer, position]
        if head is not None:
            cell = cell[:, head]
        is_inside = position < block.prompts.length  # values after a prompt's end mean nothing
        torch.testing.assert_close(cell[is_inside], expected[is_inside], **tolerance)


def test_the_work_is_counted_as_three_passes_a_step(tiny_models: Any) -> None:
    block = block_of(tiny_models.load("gpt2"), (5, 5), "logit_difference")
    for kind in ("resid_pre", "z"):
        block.load("clean", [Site(kind, layer) for layer in range(3)])
        block.load("corrupted", [Site(kind, layer) for layer in range(3)])
    block.load("clean", [Site("resid_pre", 0)])
    before = block.meter.spent
    attribute_sites(block, "clean", "z", 4)
    assert (
        block.meter.spent - before
        == pytest.approx(estimate_attributions(block, 4))
        == pytest.approx(2 * 4 * 3, rel=0.2)
    )
    assert prompt_macs(block.backend.info, 5) > 0


@pytest.mark.parametrize("fits", [1, 2])
def test_if_memory_runs_out_the_batch_is_halved(
    tiny_models: Any, monkeypatch: pytest.MonkeyPatch, fits: int
) -> None:
    model = tiny_models.load("gpt2", dtype="float64")
    block = block_of(model, (5,) * 5, "logit_difference")
    monkeypatch.setattr(type(block), "rows_in_memory", lambda self, first, end: 1000)
    whole = attribute_sites(block, "clean", "z")
    run = type(model).run

    def tight(self: Any, batch: Any, *args: Any, **options: Any) -> Any:
        if len(batch.tokens) > fits and options.get("grad"):
            raise torch.OutOfMemoryError("no more")
        return run(self, batch, *args, **options)

    monkeypatch.setattr(type(model), "run", tight)
    torch.testing.assert_close(attribute_sites(block, "clean", "z"), whole)


def test_others_can_use_the_device_between_the_passes(tiny_models: Any) -> None:
    """A batch has a forward and a backward pass for each step, which may be long together."""
    model = tiny_models.load("gpt2", dtype="float64")
    block = block_of(model, (5,) * 3, "logit_difference")
    for side in SIDES:
        block.logits(side)
    reports: list[float] = []
    block.meter.progress = lambda done, total, label: reports.append(done)
    attribute_sites(block, "clean", "z", steps=4)
    assert len(reports) >= 1 + 4 + 1  # at the beginning, after each step, and after the batch
