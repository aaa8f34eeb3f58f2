"""Estimated edges against measured ones: exact into the logits, in order elsewhere, and cheap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr

from benchmarks.random_models.tiny_models import as_task, random_pairs, save_hugging_face
from discovery import load_model, load_task
from discovery.engine import Engine, Meter
from discovery.errors import BudgetError
from discovery.methods.patching import (
    edges_between,
    estimate_edge,
    estimate_edge_screen,
    measure_edges,
    screen_edges,
    select_edges,
)
from discovery.sites import LOGITS, Node, mlp


def compare_with_measured(engine: Engine, nodes: Sequence[Node]) -> tuple[np.ndarray, np.ndarray]:
    """Return the estimated and the measured effect of every edge that does not end in the logits.

    The others are measured in the screen too, and must be the same.
    """
    estimates = screen_edges(engine, nodes)
    assert [*estimates] == edges_between(nodes, parallel=engine.backend.info.parallel)
    measured = measure_edges(engine, list(estimates))
    gap = (engine.baseline("clean") - engine.baseline("corrupted")).mean()
    effects = {
        (edge.source, edge.target): float((engine.baseline("clean") - edge.whole).mean() / gap)
        for edge in measured
    }
    for edge in estimates:
        if edge[1] == LOGITS:
            assert estimates[edge] == pytest.approx(effects[edge], abs=1e-6)
    others = [edge for edge in estimates if edge[1] != LOGITS]
    return (
        np.array([estimates[edge] for edge in others]),
        np.array([effects[edge] for edge in others]),
    )


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_if_both_prompts_are_almost_the_same_estimates_are_the_measured_effects(
    tmp_path: Path, kind: str
) -> None:
    """Then everything behind a target is linear, which is all that the estimate assumes."""
    folder = save_hugging_face(tmp_path / "model", kind)
    weights = load_file(folder / "model.safetensors")
    (name,) = (
        n for n in weights if n.endswith(("wte.weight", "embed_tokens.weight", "embed_in.weight"))
    )
    embedding = weights[name]
    weights[name] = embedding.mean(0) + 1e-3 * (embedding - embedding.mean(0))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = load_model(folder, dtype="float64")
    engine = Engine(model, as_task(random_pairs((6, 4, 7), seed=5)))
    estimates, effects = compare_with_measured(engine, model.info.nodes()[::2])
    scale = np.abs(effects).max()
    assert scale > 0.01
    np.testing.assert_allclose(estimates, effects, atol=0.02 * scale)


def test_in_a_trained_model_the_largest_estimates_are_the_largest_effects() -> None:
    """The half of the edges with the largest estimates has nearly all of what any half can have."""
    model = load_model("bundled")
    task = load_task("ioi", model, pairs=60).discovery
    engine = Engine(model, replace(task, pairs=task.pairs[:16], splits=task.splits[:16]))
    names = ("a0.h3", "m0", "a1.h0", "a1.h3", "m1", "a2.h0", "m2", "m3")
    estimates, effects = compare_with_measured(engine, [Node.parse(name) for name in names])
    sizes = np.abs(effects)
    assert spearmanr(np.abs(estimates), sizes).statistic > 0.85
    half = len(sizes) // 2
    selected = sizes[np.argsort(-np.abs(estimates))[:half]].sum()
    assert selected > 0.97 * np.sort(sizes)[-half:].sum()


def test_a_screen_costs_no_more_than_estimated_and_far_less_than_the_edges(
    tiny_models: Any,
) -> None:
    model = tiny_models.load("llama")
    engine = Engine(model, as_task(random_pairs((6, 4, 7), seed=5)))
    nodes = model.info.nodes()[::2]
    measure_edges(engine, [(mlp(0), LOGITS)])  # what any edge caches
    screen_edges(engine, nodes)
    before = engine.meter.spent
    screen_edges(engine, nodes)
    spent = engine.meter.spent - before
    assert spent <= estimate_edge_screen(engine, nodes) * (1 + 1e-6)
    poor = Engine(model, engine.task, meter=Meter(limit=spent / 2))
    with pytest.raises(BudgetError, match="edge screen"):
        screen_edges(poor, nodes)


def test_the_largest_that_fit_are_selected_and_free_ones_always(tiny_models: Any) -> None:
    nodes = [Node.parse(name) for name in ("a0.h0", "a1.h0", "m1")]
    edges = edges_between(nodes)
    estimates = {edge: float(number) for number, edge in enumerate(edges)}
    costs = {edge: 0.0 if edge[1] == LOGITS else 10.0 for edge in edges}
    selected = select_edges(estimates, costs, 25.0)
    paid = [edge for edge in edges if costs[edge]]
    assert selected == [edge for edge in edges if edge in paid[-2:] or not costs[edge]]
    assert select_edges(estimates, costs, 1e9) == edges
    assert select_edges(estimates, costs, -5.0) == [edge for edge in edges if not costs[edge]]


def test_an_edge_costs_at_most_its_estimate(tiny_models: Any) -> None:
    model = tiny_models.load("gpt2")
    engine = Engine(model, as_task(random_pairs((6, 6), seed=5)))
    edge = (Node.parse("a0.h0"), Node.parse("a1.h1"))
    first = measure_edges(engine, [edge])
    before = engine.meter.spent
    again = measure_edges(engine, [edge])
    assert torch.equal(first[0].whole, again[0].whole)
    assert 0 < engine.meter.spent - before <= estimate_edge(engine, edge[1]) * (1 + 1e-6)
