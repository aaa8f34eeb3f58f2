"""Estimated edges against measured ones: exact into the logits, in order elsewhere, and cheap."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import spearmanr

from benchmarks.random_models.tiny_models import as_task, random_pairs
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


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox"])
def test_estimates_are_in_the_order_of_the_measured_effects(tiny_models: Any, name: str) -> None:
    model = tiny_models.load(name, dtype="float64")
    engine = Engine(model, as_task(random_pairs((6, 4, 7), seed=5)))
    nodes = model.info.nodes()
    estimates = screen_edges(engine, nodes)
    measured = measure_edges(engine, list(estimates))
    gap = (engine.baseline("clean") - engine.baseline("corrupted")).mean()
    exact = {
        (edge.source, edge.target): float((engine.baseline("clean") - edge.whole).mean() / gap)
        for edge in measured
    }
    assert [*estimates] == edges_between(nodes, parallel=model.info.parallel)
    into_logits = [edge for edge in estimates if edge[1] == LOGITS]
    for edge in into_logits:
        assert estimates[edge] == pytest.approx(exact[edge], abs=1e-9)
    others = [edge for edge in estimates if edge[1] != LOGITS]
    correlation = spearmanr(
        [abs(estimates[edge]) for edge in others], [abs(exact[edge]) for edge in others]
    ).statistic
    assert correlation > 0.7, correlation


def test_a_screen_costs_no_more_than_estimated_and_far_less_than_the_edges(
    tiny_models: Any,
) -> None:
    model = tiny_models.load("llama")
    engine = Engine(model, as_task(random_pairs((6, 4, 7), seed=5)))
    nodes = model.info.nodes()
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
