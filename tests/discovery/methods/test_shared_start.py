"""Sets that differ by one node start from a run that they share, and give the same numbers."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery.engine import Engine
from discovery.methods import ablation as module
from discovery.methods import shared_start
from discovery.methods.ablation import NodeSet, SetMetric
from discovery.methods.shared_start import choose_shared_set, start_from
from discovery.sites import Ablation, Node, head, mlp

MODELS = ("gpt2", "llama", "neox", "gemma", "native", "attn_only", "rotary")
CLOSE = {"atol": 1e-9, "rtol": 1e-9}


def similar_sets(universe: tuple[Node, ...], seed: int) -> list[NodeSet]:
    """Return a set, it without each of its nodes, and it with each of the others."""
    kept = frozenset(random.Random(seed).sample(universe, len(universe) // 2))
    return [
        kept,
        *(kept - {node} for node in sorted(kept)),
        *(kept | {node} for node in universe if node not in kept),
    ]


def measure_without_sharing(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, *arguments: Any
) -> Any:
    ablation, sets = arguments
    with monkeypatch.context() as patch:
        patch.setattr(module, "choose_shared_set", lambda *_: None)
        return SetMetric(engine, ablation)(sets)


@pytest.mark.parametrize("ablation", ["resample", "mean"])
@pytest.mark.parametrize("name", MODELS)
def test_the_numbers_are_the_same(
    tiny_models: Any, monkeypatch: pytest.MonkeyPatch, name: str, ablation: Ablation
) -> None:
    model = tiny_models.load(name, dtype="float64")
    task = as_task(random_pairs([6] * 5 + [4, 7], seed=3, labelled=True))
    sets = similar_sets(model.info.nodes(), 1)
    expected = measure_without_sharing(monkeypatch, Engine(model, task), ablation, sets)
    monkeypatch.setattr(shared_start, "MIN_LAYERS_SPARED", 0.0)
    torch.testing.assert_close(SetMetric(Engine(model, task), ablation)(sets), expected, **CLOSE)


@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_the_estimate_is_what_is_spent(tiny_models: Any, ablation: Ablation) -> None:
    engine = Engine(tiny_models.load("native"), as_task(random_pairs([6] * 5, seed=3)))
    sets = SetMetric(engine, ablation)
    sets.fill_cache()
    similar = similar_sets(sets.universe, 2)
    expected = sets.estimate(similar)
    spent = engine.meter.spent
    sets(similar)
    assert engine.meter.spent - spent == pytest.approx(expected)


@pytest.mark.parametrize("share", [1e-9, 1e-5])
def test_little_memory_takes_the_pairs_in_parts(
    tiny_models: Any, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    model = tiny_models.load("native", dtype="float64")
    task = as_task(random_pairs([6] * 5, seed=3))
    sets = similar_sets(model.info.nodes(), 1)
    expected = SetMetric(Engine(model, task), "resample")(sets)
    monkeypatch.setattr(module, "SHARED_MEMORY_SHARE", share)
    engine = Engine(model, task, memory=10**9)
    torch.testing.assert_close(SetMetric(engine, "resample")(sets), expected, **CLOSE)


def test_what_is_shared_is_what_most_of_the_large_sets_ablate() -> None:
    layers = 6
    nodes = [head(layer, 0) for layer in range(layers)] + [mlp(layer) for layer in range(layers)]
    ablated = frozenset(nodes[:4] + nodes[6:10])
    similar = [ablated, *(ablated | {node} for node in nodes if node not in ablated)]
    single = [frozenset({node}) for node in nodes]
    assert choose_shared_set([*similar * 3, *single], layers) == ablated
    assert choose_shared_set(single, layers) is None, "each starts late by itself"
    assert choose_shared_set([], layers) is None
    assert start_from(ablated, ablated, layers) == layers
    assert start_from(ablated, ablated | {head(5, 0)}, layers) == 5
    assert start_from(ablated, ablated - {mlp(2)}, layers) == 2
