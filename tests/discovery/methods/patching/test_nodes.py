"""Effects of single nodes: heads against `head_out` sweeps, MLPs against plain forward passes."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.known_circuits.forward import run_forward
from benchmarks.known_circuits.hand_built import build_known_circuit
from benchmarks.known_circuits.known_circuit import KnownCircuit
from benchmarks.known_circuits.truth import group_pairs, measure_single_effects
from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery.engine import Engine
from discovery.methods.ablation import SetMetric, ablate_heads
from discovery.methods.patching import measure_node_effects, patch_sweep
from discovery.sites import Direction
from tests.oracles.patching.activation_patching import mlp_effect

DIRECTIONS: tuple[Direction, ...] = ("denoising", "noising")
LENGTHS = (6, 4, 7)
MODELS = ("native", "attn_only", "rotary", "gpt2", "llama", "neox")


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_heads_are_the_sweep_and_mlps_the_plain_computation(
    tiny_models: Any, name: str, direction: Direction
) -> None:
    """Prompts of unequal length whose last tokens differ, sets of answers."""
    model = tiny_models.load(name)
    metrics: dict[str, Any] = {"gpt2": "probability_difference", "neox": "kl_divergence"}
    metric = metrics.get(name, "logit_difference")
    task = as_task(random_pairs(LENGTHS, seed=21, sets=2, same_end=False), metric)
    effects = measure_node_effects(Engine(model, task), direction)
    assert effects.nodes == model.info.nodes()
    assert effects.direction == direction
    sweep = patch_sweep(model, task, "head_out", direction=direction)
    for n, node in enumerate(effects.nodes):
        if node.kind == "attention_head":
            torch.testing.assert_close(
                effects.per_pair[:, n],
                sweep.per_pair[:, node.layer, node.head],
                atol=1e-5,
                rtol=1e-5,
            )
            torch.testing.assert_close(
                effects.values[n], sweep.values[node.layer, node.head], atol=1e-5, rtol=1e-4
            )
        else:
            assert node.layer is not None
            expected = mlp_effect(model, task, node.layer, direction, metric)
            torch.testing.assert_close(
                effects.per_pair[:, n].double(), expected, atol=2e-5, rtol=1e-4
            )
            clean, corrupted = (
                row.double().mean() for row in (sweep.metric_clean, sweep.metric_corrupted)
            )
            change = (
                expected.mean() - corrupted if direction == "denoising" else clean - expected.mean()
            )
            assert float(effects.values[n]) == pytest.approx(
                float(change / (clean - corrupted)), abs=1e-4, rel=1e-3
            )


@pytest.mark.parametrize("name", ["or_mlp", "opposing_030"])
def test_a_hand_built_model_by_its_weights(name: str, tmp_path: Any) -> None:
    from discovery import load_model, load_task

    case: KnownCircuit = build_known_circuit(name)
    case = replace(
        case,
        pairs=tuple(
            p for t in {pair.template for pair in case.pairs} for p in case.pairs if p.template == t
        )[::15],
    )
    model = load_model(case.save(tmp_path / name))
    task = load_task([pair.record() for pair in case.pairs], model)
    expected = measure_single_effects(case, group_pairs(case, per_template=len(case.pairs)))
    engine = Engine(model, as_task(task.pairs))
    noising, denoising = (
        measure_node_effects(engine, direction).values.tolist()
        for direction in ("noising", "denoising")
    )
    for n, node in enumerate(model.info.nodes()):
        assert (noising[n], denoising[n]) == pytest.approx(expected[str(node)], abs=1e-4)


def test_noising_a_node_is_ablating_it_by_resample(tiny_models: Any) -> None:
    model = tiny_models.load("native")
    engine = Engine(model, as_task(random_pairs(LENGTHS, seed=22)))
    sets = SetMetric(engine, "resample")
    ablated = sets([sets.everything - {node} for node in model.info.nodes()])
    torch.testing.assert_close(
        measure_node_effects(engine, "noising").per_pair.T, ablated, atol=1e-5, rtol=1e-5
    )


def test_with_the_mlps_kept_only_heads_are_measured(tiny_models: Any) -> None:
    model = tiny_models.load("native")
    engine = Engine(model, as_task(random_pairs(LENGTHS, seed=23)))
    every = measure_node_effects(engine, "denoising")
    heads = measure_node_effects(engine, "denoising", "heads")
    assert heads.nodes == tuple(node for node in every.nodes if node.kind == "attention_head")
    columns = [every.nodes.index(node) for node in heads.nodes]
    torch.testing.assert_close(heads.per_pair, every.per_pair[:, columns], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_no_shortcut_and_no_block_changes_a_number(
    tiny_models: Any, direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models.load("native")
    task = as_task(random_pairs((6, 4, 7, 5, 6), seed=24))
    quick = measure_node_effects(Engine(model, task), direction)
    small = Engine(model, task, memory=80_000)
    assert len(list(small.blocks())) > 1
    torch.testing.assert_close(
        measure_node_effects(small, direction).per_pair, quick.per_pair, atol=1e-5, rtol=1e-5
    )
    monkeypatch.setattr(
        model,
        "abilities",
        replace(
            model.abilities, after_attention=False, prefix=False, columns=False, linear_heads=False
        ),
    )
    torch.testing.assert_close(
        measure_node_effects(Engine(model, task), direction).per_pair,
        quick.per_pair,
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_a_task_of_a_single_pair(tiny_models: Any, ablation: Any) -> None:
    """Sweeps, single nodes and ablations work with one pair.

    Without another pair and without labels, a mean is over the pair's own positions.
    """
    model = tiny_models.load("native")
    task = as_task(random_pairs((5,), seed=25))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sweep = patch_sweep(model, task, "head_out", direction="noising")
        nodes = measure_node_effects(Engine(model, task), "noising")
        out = ablate_heads(model, task, ["a0.h1", "m1"], ablation=ablation)
    assert sweep.per_pair.shape == (1, 2, 3)
    assert bool(sweep.values.isfinite().all())
    assert nodes.per_pair.shape == (1, 8)
    assert out.metric_clean == pytest.approx(float(sweep.metric_clean[0]), abs=1e-6)
    assert out.per_pair.shape == (1,)
    weights, (pair,) = tiny_models.native("native"), task.pairs
    corrupted = run_forward(weights.config, weights.state, torch.tensor([pair.corrupted])).nodes
    put = {
        "resample": lambda value: value,
        "mean": lambda value: torch.cat(
            [value[:, :1], value[:, 1:].mean(1, keepdim=True).expand_as(value[:, 1:])], 1
        ),
        "zero": torch.zeros_like,
    }[ablation]
    replaced = {node: put(corrupted[node]) for node in ("a0.h1", "m1")}
    logits = run_forward(
        weights.config, weights.state, torch.tensor([pair.clean]), replaced
    ).logits[0, -1]
    assert out.metric_ablated == pytest.approx(
        float(logits[pair.answer[0]] - logits[pair.wrong[0]]), abs=1e-4
    )
    assert out.reference.size == (1 if ablation == "resample" else 0)


def test_sides_that_do_not_differ_give_nothing_to_normalise_by(tiny_models: Any) -> None:
    """The metric is there for every node; the effects are NaN."""
    model = tiny_models.load("native")
    same = [replace(pair, corrupted=pair.clean) for pair in random_pairs((5, 5), seed=26)]
    engine = Engine(model, as_task(same))
    effects = measure_node_effects(engine, "noising")
    torch.testing.assert_close(effects.per_pair, engine.baseline("clean").unsqueeze(1).expand(2, 8))
    assert bool(effects.values.isnan().all())


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", ["native", "llama"])
def test_some_nodes_give_what_all_give_at_a_lower_cost(
    tiny_models: Any, name: str, direction: Direction
) -> None:
    model = tiny_models.load(name, dtype="float64")
    engine = Engine(model, as_task(random_pairs(LENGTHS, seed=24)))
    every = measure_node_effects(engine, direction)
    spent = engine.meter.spent
    wanted = every.nodes[1::3]
    some = measure_node_effects(engine, direction, nodes=wanted)
    assert some.nodes == wanted
    columns = [every.nodes.index(node) for node in wanted]
    torch.testing.assert_close(some.per_pair, every.per_pair[:, columns], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(some.values, every.values[columns], atol=1e-9, rtol=1e-9)
    assert engine.meter.spent - spent < 0.6 * spent
