"""Attributions against finite differences: the slope of the metric along each cell's own change, at the interpolated input."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery.backends.base import Batch
from discovery.engine import Engine, attribute_sites, estimate_attributions, prompt_macs
from discovery.errors import SiteError
from discovery.interventions import Edit
from discovery.metrics import measure
from discovery.sites import BackendName, Site

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
STEP, CLOSE = 1e-4, {"atol": 1e-7, "rtol": 1e-4}
SINGLE, NEAR = 2e-3, {"atol": 3e-3, "rtol": 2e-2}
# In single precision whatever the weights are: llama's norm, and GPT-NeoX's own softmax (TransformerLens has one of its own there).
ROUNDED = {("llama", "transformerlens"), ("llama", "nnsight"), ("neox", "nnsight")}


def block_of(model: Any, lengths: tuple[int, ...], metric: Any) -> Any:
    engine = Engine(model, as_task(random_pairs(lengths, seed=3, sets=2)), metric=metric)
    return next(iter(engine.blocks()))[1]


def slope(
    block: Any,
    base: Any,
    kind: Any,
    layer: int,
    position: int,
    head: int | None,
    steps: int,
    step: float,
) -> torch.Tensor:
    """Central differences of every pair's metric along (source − base) at one cell, the mean over inputs between the two."""
    prompts, site = block.prompts, Site(kind, layer)
    source = "clean" if base == "corrupted" else "corrupted"
    change = block.activation(source, site) - block.activation(base, site)
    positions = change.shape[2 if kind == "pattern" else 1]
    here = torch.arange(positions) == position
    where = (
        here[None]
        if head is None
        else here[None, :, None]
        & (torch.arange(change.shape[1 if kind == "pattern" else 2]) == head)
    )
    if kind == "pattern":
        where = where.transpose(1, 2)
    near, far = (block.activation(side, Site("resid_pre", 0)) for side in (base, source))
    total = torch.zeros(len(prompts), dtype=near.dtype)
    for n in range(steps):
        stream = near + (n + 0.5) / steps * (far - near)
        for sign in (1, -1):
            edit = Edit(site, sign * step * change, where, "add")
            logits = block.backend.run(
                Batch(prompts.tokens(base), prompts.last, start=0, residual=stream), edits=[edit]
            ).logits
            clean = block.logits("clean") if block.metric == "kl_divergence" else None
            total += (
                sign
                * measure(block.metric, logits, prompts.answer, prompts.wrong, clean)
                / (2 * step * steps)
            )
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", get_args(BackendName)[1:])
def test_the_slope_along_each_cells_change(
    tiny_models: Any, backend: BackendName, name: str, kind: Any
) -> None:
    model, rounded = tiny_models.load(name, backend, "float64"), (name, backend) in ROUNDED
    number = MODELS.index(name) + KINDS.index(kind)
    metric, base = (
        ("logit_difference", "kl_divergence", "probability_difference")[number % 3],
        ("clean", "corrupted")[number % 2],
    )
    block, steps = block_of(model, (5, 3, 6), metric), 1 + number % 2
    if kind == "pattern" and not model.abilities.pattern:
        pytest.skip("this engine's pattern cannot be edited")
    try:
        model.require_site(Site(kind, 0))
    except SiteError:
        with pytest.raises(SiteError):
            attribute_sites(block, base, kind, steps)
        return
    found = attribute_sites(block, base, kind, steps)
    heads = range(found.shape[3]) if found.ndim == 4 else (None,)
    for layer in range(model.info.n_layers):
        for position in range(block.prompts.width):
            for head in heads:
                expected = slope(
                    block, base, kind, layer, position, head, steps, SINGLE if rounded else STEP
                )
                inside = (
                    position < block.prompts.length
                )  # behind a prompt's end nothing is promised
                got = found[:, layer, position] if head is None else found[:, layer, position, head]
                torch.testing.assert_close(
                    got[inside], expected[inside], **NEAR if rounded else CLOSE
                )


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
def test_where_memory_runs_out_the_batch_is_halved(
    tiny_models: Any, monkeypatch: pytest.MonkeyPatch, fits: int
) -> None:
    model = tiny_models.load("gpt2", dtype="float64")
    block = block_of(model, (5,) * 5, "logit_difference")
    monkeypatch.setattr(type(block), "rows_that_fit", lambda self, first, end: 1000)
    whole = attribute_sites(block, "clean", "z")
    run = type(model).run

    def tight(self: Any, batch: Any, *args: Any, **options: Any) -> Any:
        if len(batch.tokens) > fits and options.get("grad"):
            raise torch.OutOfMemoryError("no more")
        return run(self, batch, *args, **options)

    monkeypatch.setattr(type(model), "run", tight)
    torch.testing.assert_close(attribute_sites(block, "clean", "z"), whole)
