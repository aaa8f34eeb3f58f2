"""Exchanged features and their edges: every number against a computation written out in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery import add_features
from discovery.engine import Meter
from discovery.features import load_sae
from discovery.graph import CircuitEdge, CircuitGraph, CircuitNode, Effect
from discovery.methods.features.circuit.edges import (
    find_sources,
    find_targets,
    measure_feature_edges,
)
from discovery.methods.features.circuit.exchange import measure_exchange, rank_by_attribution
from discovery.methods.features.circuit.feature_circuit import _edge_holds
from discovery.methods.features.splice import SplicedTask
from discovery.sites import Node, slots_of
from tests.oracles.patching.feature_patching import POSITIONS, FeaturePatchingOracle
from tests.oracles.patching.path_patching import PathPatchingOracle
from tests.tiny_saes import random_module, save

CLOSE = {"atol": 2e-4, "rtol": 1e-4}
HOOKS = [
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
    "attn.hook_z",
]


@pytest.fixture
def random_case(tiny_models, tmp_path):
    """A random LayerNorm model, pairs of different lengths, and a random SAE at a hook."""

    def make(hook, layer):
        model = tiny_models.load("native")
        weights = tiny_models.native("native")
        width = 18 if hook.endswith("z") else 12
        module = random_module(
            "standard", width, 20, f"blocks.{layer}.{hook}", normalize_activations="layer_norm"
        )
        sae = load_sae(save(module, tmp_path / "sae"), model)
        pairs = random_pairs((6, 5, 7), seed=4, sets=2, same_end=False, changed=3)
        native = PathPatchingOracle(weights.config, weights.state)
        site = f"{hook.split('hook_')[1]}.{layer}"
        oracle = FeaturePatchingOracle(native, module, site, site, pairs)
        spliced = SplicedTask.of(
            model,
            as_task(pairs),
            sae,
            POSITIONS,
            Meter(),
            metric=None,
            memory=None,
            seed=0,
        )
        return SimpleNamespace(model=model, sae=sae, spliced=spliced, oracle=oracle)

    return make


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("hook_resid_pre", 1),
        *(pytest.param(hook, 0, marks=pytest.mark.slow) for hook in HOOKS),
    ],
)
def test_every_number_is_what_a_slow_computation_gives(random_case, hook, layer):
    case = random_case(hook, layer)
    features, oracle = (2, 7), case.oracle
    exchange = measure_exchange(case.spliced, features, draws=0, seed=0, top=2)
    measured = (exchange.noised, exchange.denoised, exchange.removed, exchange.activation)
    for i, feature in enumerate(features):
        for values, expected in zip(measured, oracle.exchange_effects(feature), strict=True):
            torch.testing.assert_close(values[:, i].double(), expected, **CLOSE)
    nodes = case.model.info.nodes()
    edges = measure_feature_edges(case.spliced, features, nodes)
    clean = case.spliced.engine.baseline("clean").double()
    sources = find_sources(case.sae, nodes)
    targets = find_targets(case.model.info, case.sae, nodes)
    assert len(edges) == len(features) * (len(sources) + len(targets))
    for edge in edges:
        if edge.target.kind == "feature":
            metric, change, gap = oracle.effect_on_feature(str(edge.source), edge.target.feature)
            torch.testing.assert_close(clean - edge.whole.double(), metric, **CLOSE)
            torch.testing.assert_close(edge.activation_change.double(), change, **CLOSE)
            torch.testing.assert_close(edge.activation_gap.double(), gap, **CLOSE)
            continue
        assert tuple(edge.inputs) == slots_of(edge.target)
        for values, slots in (
            (edge.whole, slots_of(edge.target)),
            *((edge.inputs[slot], (slot,)) for slot in edge.inputs),
        ):
            expected = oracle.effect_on_node(edge.source.feature, str(edge.target), slots)
            torch.testing.assert_close(clean - values.double(), expected, **CLOSE)


def test_attribution_is_the_slope_of_the_exchange(random_case):
    """A small exchange by finite differences, and the whole exchange by integrated gradients."""
    case = random_case("hook_resid_post", 0)
    oracle = case.oracle
    ranking = rank_by_attribution(case.spliced, 1, 20)
    for i, feature in list(enumerate(ranking.features))[:4]:
        slopes = []
        for pair in oracle.pairs:
            clean, _ = oracle.sides(pair)
            (_, here), (_, there) = oracle.contributions(pair)
            step = 1e-4 * (here - there)[:, feature]
            above = oracle.metric_after_push(pair, clean, step, feature)
            below = oracle.metric_after_push(pair, clean, -step, feature)
            slopes.append((above - below) / 2e-4)
        torch.testing.assert_close(
            ranking.per_pair[:, i].double(), torch.stack(slopes), atol=1e-4, rtol=1e-3
        )
    means = ranking.per_pair.double().mean(0).abs().tolist()
    assert means == sorted(means, reverse=True)
    integrated = rank_by_attribution(case.spliced, 64, 20).per_pair.double().sum(1)
    whole = []
    for pair in oracle.pairs:
        clean, _ = oracle.sides(pair)
        (_, here), (_, there) = oracle.contributions(pair)
        push = oracle.at_positions(pair, there - here) @ oracle.w["W_dec"]
        whole.append(
            oracle.metric(pair, oracle.native.sites(clean)[0])
            - oracle.metric(pair, oracle.native.sites(clean, {oracle.writes: push})[0])
        )
    torch.testing.assert_close(integrated, torch.stack(whole), atol=0.05, rtol=0.05)


def test_which_nodes_a_feature_reads_and_which_read_it(random_case):
    def ends(hook, layer):
        case = random_case(hook, layer)
        nodes = case.model.info.nodes()
        both = (find_sources(case.sae, nodes), find_targets(case.model.info, case.sae, nodes))
        return [" ".join(map(str, side)) for side in both]

    assert ends("hook_resid_pre", 1) == [
        "embed a0.h0 a0.h1 a0.h2 m0",
        "a1.h0 a1.h1 a1.h2 m1 logits",
    ]
    assert ends("hook_resid_mid", 0) == [
        "embed a0.h0 a0.h1 a0.h2",
        "m0 a1.h0 a1.h1 a1.h2 m1 logits",
    ]
    assert ends("hook_attn_out", 0) == ["a0.h0 a0.h1 a0.h2", "m0 a1.h0 a1.h1 a1.h2 m1 logits"]
    assert ends("hook_mlp_out", 0) == ["m0", "a1.h0 a1.h1 a1.h2 m1 logits"]
    assert ends("hook_resid_post", 1) == [
        "embed a0.h0 a0.h1 a0.h2 m0 a1.h0 a1.h1 a1.h2 m1",
        "logits",
    ]


@pytest.mark.parametrize(
    ("source", "effect", "activation", "holds"),
    [
        ("f1.3", (0.02, 0.01, 0.03), None, True),
        ("f1.3", (0.009, 0.008, 0.010), None, False),  # of a feature that does 0.5 alone
        ("f1.7", (0.009, 0.008, 0.010), None, True),  # of one that does 0.03: nearly a third of it
        ("f1.7", (-0.009, -0.010, -0.008), None, True),
        ("f1.7", (0.002, 0.001, 0.003), None, False),
        ("f1.7", (0.009, -0.001, 0.019), None, False),
        ("a0.h1", (0.0, 0.0, 0.0), (0.06, 0.05, 0.07), True),
        ("a0.h1", (0.5, 0.4, 0.6), (0.04, 0.03, 0.05), False),
        ("a0.h1", (0.5, 0.4, 0.6), (0.5, -0.1, 1.1), False),
    ],
)
def test_which_edges_are_kept(source, effect, activation, holds):
    """Out of a feature: 0.01 of the metric, or a tenth of the feature's effect. Into one: 0.05."""

    def interval(values):
        return Effect(mean=values[0], low=values[1], high=values[2])

    edge = CircuitEdge(
        source=source,
        target="m1" if activation is None else "f1.7",
        effect=interval(effect),
        activation=activation and interval(activation),
    )
    assert _edge_holds(edge, {"f1.3": 0.5, "f1.7": 0.03}) is holds


def test_a_transcoder_reads_the_stream_and_writes_as_an_mlp(tiny_models, tmp_path):
    model = tiny_models.load("native")
    module = random_module(
        "transcoder", 12, 24, "blocks.0.hook_resid_mid", hook_out="blocks.0.hook_mlp_out"
    )
    sae = load_sae(save(module, tmp_path / "sae"), model)
    nodes = model.info.nodes()
    sources = " ".join(map(str, find_sources(sae, nodes)))
    targets = " ".join(map(str, find_targets(model.info, sae, nodes)))
    assert sources == "embed a0.h0 a0.h1 a0.h2"
    assert targets == "a1.h0 a1.h1 a1.h2 m1 logits"
    result = add_features(
        model,
        CircuitGraph(nodes=(CircuitNode.of("a0.h1"),)),
        as_task(random_pairs((6,) * 8)),
        sae,
        k=3,
        controls=0,
    )
    candidates = result.circuit.dictionaries[0].candidates
    assert all(Node.parse(name).site == "mlp_out" for name in candidates)
