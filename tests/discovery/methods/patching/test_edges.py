"""Edges against path patching written out on the weights, and identities that hold exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.known_circuits.hand_built import build_known_circuit
from benchmarks.known_circuits.truth import load_truth
from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery.backends.info import Abilities
from discovery.engine import Engine, Meter
from discovery.errors import BudgetError
from discovery.methods.patching import (
    EdgeMetrics,
    edges_between,
    measure_edge_effects,
    measure_node_effects,
)
from discovery.sites import EMBED, LOGITS, Node, head, mlp, slots_of
from discovery.tasks.task import EncodedPair
from tests.oracles.patching.path_patching import PathPatchingOracle

LENGTHS = (6, 4, 7)


def parse(*names: str) -> list[Node]:
    return [Node.parse(name) for name in names]


def by_hand(
    native: PathPatchingOracle,
    pairs: Sequence[EncodedPair],
    source: Node,
    target: Node,
    slots: Sequence[str],
) -> Tensor:
    """The logit difference of each pair with this edge patched."""
    logits = [
        native.patched(
            torch.tensor(pair.clean), torch.tensor(pair.corrupted), str(source), str(target), slots
        )
        for pair in pairs
    ]
    return torch.stack(
        [
            row[list(p.answer)].logsumexp(0) - row[list(p.wrong)].logsumexp(0)
            for row, p in zip(logits, pairs, strict=True)
        ]
    )


def assert_by_hand(
    found: Sequence[EdgeMetrics], native: PathPatchingOracle, pairs: Sequence[EncodedPair]
) -> None:
    for edge in found:
        slots = slots_of(edge.target)
        assert tuple(edge.inputs) == slots
        for values, changed in (
            (edge.whole, slots),
            *((edge.inputs[slot], (slot,)) for slot in slots),
        ):
            expected = by_hand(native, pairs, edge.source, edge.target, changed)
            torch.testing.assert_close(
                values.double(),
                expected,
                atol=1e-4,
                rtol=1e-5,
                msg=lambda m, e=edge, c=changed: f"{e}<{c}>: {m}",
            )


@pytest.fixture(scope="module")
def hand_built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A hand-built case with two pairs of each template: model, weights, pairs."""
    from discovery import load_model, load_task

    loaded: dict[str, Any] = {}

    def of(name: str) -> Any:
        if name not in loaded:
            case = build_known_circuit(name)
            folder = case.save(tmp_path_factory.mktemp(name))
            model = load_model(folder)
            every = load_task(folder / "task.jsonl", model, pairs=24).pairs
            by_template = {
                template: [pair for pair in every if pair.template == template][:2]
                for template in {p.template for p in every}
            }
            loaded[name] = (
                model,
                PathPatchingOracle(case.config, case.state),
                tuple(pair for pairs in by_template.values() for pair in pairs),
            )
        return loaded[name]

    return of


@pytest.mark.parametrize("name", ["induction", "or_mlp"])
def test_every_edge_and_slot_of_a_hand_built_circuit(name: str, hand_built: Any) -> None:
    """With a bystander of each layer beside the circuit."""
    model, native, pairs = hand_built(name)
    members = parse(
        *load_truth(name).nodes, "a0.h0", "a1.h3", *(["m0"] if name == "or_mlp" else [])
    )
    edges = measure_edge_effects(Engine(model, as_task(pairs)), members)
    assert [(edge.source, edge.target) for edge in edges] == edges_between(members)
    assert_by_hand(edges, native, pairs)


def test_every_edge_and_slot_behind_layernorm(tiny_models: Any) -> None:
    """On a random model with MLPs and biases, and on pairs that vary in every way."""
    model = tiny_models.load("native")
    weights = tiny_models.native("native")
    pairs = random_pairs(LENGTHS, seed=4, sets=2, same_end=False, changed=3)
    edges = measure_edge_effects(Engine(model, as_task(pairs)), model.info.nodes())
    assert len(edges) == 3 * 1 + 4 + 3 * 5 + 8 + 9, (
        "into the heads, the MLP, the heads, the MLP, the logits"
    )
    assert_by_hand(edges, PathPatchingOracle(weights.config, weights.state), pairs)


def test_the_edge_of_the_induction_circuit_enters_through_keys(hand_built: Any) -> None:
    """The previous-token head moves only the induction head's keys, and not the logits directly."""
    model, _, pairs = hand_built("induction")
    before, after = parse(*load_truth("induction").nodes)
    engine = Engine(model, as_task(pairs))
    clean = engine.baseline("clean")
    corrupted = engine.baseline("corrupted")
    gap = float((clean - corrupted).mean())
    edges = {(e.source, e.target): e for e in measure_edge_effects(engine, [before, after])}
    effect = {
        slot: float((clean - values).mean()) / gap
        for slot, values in edges[before, after].inputs.items()
    }
    assert effect["k"] > 0.9
    assert abs(effect["q"]) < 0.05
    assert abs(effect["v"]) < 0.05
    assert float((clean - edges[after, LOGITS].whole).mean()) / gap > 0.9
    assert abs(float((clean - edges[before, LOGITS].whole).mean())) / gap < 0.05


def test_direct_effects_on_the_logits_add_up_without_a_norm(tiny_models: Any) -> None:
    """The final stream is the sum of all nodes, and the logit difference is linear in it."""
    model = tiny_models.load("attn_only")
    engine = Engine(model, as_task(random_pairs(LENGTHS, seed=5, same_end=False)))
    direct = [
        edge for edge in measure_edge_effects(engine, model.info.nodes()) if edge.target == LOGITS
    ]
    assert len(direct) == 1 + len(model.info.nodes())
    clean = engine.baseline("clean")
    corrupted = engine.baseline("corrupted")
    torch.testing.assert_close(
        torch.stack([clean - edge.whole for edge in direct]).sum(0),
        clean - corrupted,
        atol=1e-4,
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", ["attn_only", "native", "gpt2", "llama", "rotary"])
def test_an_edge_that_carries_everything_is_noising_the_node(tiny_models: Any, name: str) -> None:
    """An edge that carries all of a node's input, or all of its output, is noising that node.

    Those are the edges from embed to a head of layer 0, and from the last layer to the logits.
    """
    model = tiny_models.load(name)
    engine = Engine(model, as_task(random_pairs(LENGTHS, seed=6, same_end=False)))
    noised = measure_node_effects(engine, "noising")
    alone = dict(zip(noised.nodes, noised.per_pair.T, strict=True))
    last = model.info.n_layers - 1
    end = (
        [head(last, h) for h in range(model.info.n_heads)] if model.info.attn_only else [mlp(last)]
    )
    edges = {(e.source, e.target): e for e in measure_edge_effects(engine, model.info.nodes())}
    for h in range(model.info.n_heads):
        torch.testing.assert_close(
            edges[EMBED, head(0, h)].whole, alone[head(0, h)], atol=1e-4, rtol=1e-4
        )
    for node in end:
        torch.testing.assert_close(edges[node, LOGITS].whole, alone[node], atol=1e-4, rtol=1e-4)


def test_embed_has_no_effect_on_the_logits_if_the_last_tokens_agree(tiny_models: Any) -> None:
    model = tiny_models.load("native")
    engine = Engine(model, as_task(random_pairs(LENGTHS, seed=7)))
    edges = {(e.source, e.target): e for e in measure_edge_effects(engine, [mlp(1)])}
    torch.testing.assert_close(
        edges[EMBED, LOGITS].whole, engine.baseline("clean"), atol=1e-5, rtol=1e-5
    )


def test_a_node_that_does_not_differ_has_no_effect(tiny_models: Any, tmp_path: Any) -> None:
    """The head's values are its bias whatever it reads, so its output is the same in both runs."""
    from benchmarks.random_models.tiny_models import save_native
    from discovery import load_model

    checkpoint = save_native(tmp_path / "model")
    checkpoint.state["blocks.0.attn.W_V"][1] = 0.0
    checkpoint.save()
    model = load_model(checkpoint.path)
    engine = Engine(model, as_task(random_pairs(LENGTHS, seed=8)))
    clean = engine.baseline("clean")
    edges = [
        edge
        for edge in measure_edge_effects(engine, model.info.nodes())
        if edge.source == head(0, 1)
    ]
    assert len(edges) == 6
    for edge in edges:
        for values in (edge.whole, *edge.inputs.values()):
            torch.testing.assert_close(values, clean, atol=2e-5, rtol=1e-5)
    heard = next(
        edge
        for edge in measure_edge_effects(engine, model.info.nodes())
        if edge.target == head(0, 1)
    )
    torch.testing.assert_close(heard.whole, clean, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["native", "attn_only", "gpt2"])
def test_no_shortcut_changes_a_number(
    tiny_models: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that cannot start after an attention, or reuse a prefix, gives the same numbers."""
    model = tiny_models.load(name)
    task = as_task(random_pairs(LENGTHS, seed=9))
    members = model.info.nodes()[-4:]
    quick = measure_edge_effects(Engine(model, task), members)
    run = type(model).run

    def never_after_attention(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        assert not batch.after_attention
        return run(self, batch, *args, **kwargs)

    monkeypatch.setattr(type(model), "run", never_after_attention)
    monkeypatch.setattr(
        model,
        "abilities",
        replace(model.abilities, after_attention=False, prefix=False, columns=False),
    )
    plain = measure_edge_effects(Engine(model, task), members)
    monkeypatch.setattr(model, "abilities", Abilities())
    none = measure_edge_effects(Engine(model, task), members)
    for first, two, three in zip(quick, plain, none, strict=True):
        for a, b, c in zip(
            (first.whole, *first.inputs.values()),
            (two.whole, *two.inputs.values()),
            (three.whole, *three.inputs.values()),
            strict=True,
        ):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)
            torch.testing.assert_close(a, c, atol=2e-5, rtol=1e-5)


def test_pairs_in_blocks_and_batches(tiny_models: Any) -> None:
    model = tiny_models.load("native")
    task = as_task(random_pairs((6, 4, 7, 5, 6), seed=10))
    members = [head(0, 0), mlp(0), head(1, 2)]
    whole = measure_edge_effects(Engine(model, task), members)
    small = Engine(model, task, memory=80_000)
    assert len(list(small.blocks())) > 1
    for expected, other in zip(whole, measure_edge_effects(small, members), strict=True):
        torch.testing.assert_close(expected.whole, other.whole, atol=2e-5, rtol=1e-5)
        for slot in expected.inputs:
            torch.testing.assert_close(
                expected.inputs[slot], other.inputs[slot], atol=2e-5, rtol=1e-5
            )


def test_which_edges_there_are() -> None:
    """Each node feeds later ones, and a head the MLP of its layer, but no head of its layer."""
    a = head(0, 0)
    b = head(0, 1)
    m = mlp(0)
    late = head(2, 0)
    expected = {
        (EMBED, a), (EMBED, b), (EMBED, m), (EMBED, late), (EMBED, LOGITS),
        (a, m), (b, m), (a, late), (b, late), (m, late),
        (a, LOGITS), (b, LOGITS), (m, LOGITS), (late, LOGITS),
    }  # fmt: skip
    pairs = edges_between([late, m, b, a])
    assert set(pairs) == expected
    assert len(pairs) == len(expected)
    assert edges_between([]) == [(EMBED, LOGITS)]


def test_if_attention_and_mlp_are_parallel_heads_do_not_feed_the_mlp_beside_them(
    tiny_models: Any,
) -> None:
    """Both read the same stream, so embed is all that the MLP of layer 0 reads."""
    model = tiny_models.load("neox")
    assert model.info.parallel
    engine = Engine(model, as_task(random_pairs(LENGTHS, seed=11)))
    edges = {(e.source, e.target): e for e in measure_edge_effects(engine, model.info.nodes())}
    assert (head(0, 0), mlp(0)) not in edges
    assert (head(0, 0), mlp(1)) in edges
    noised = measure_node_effects(engine, "noising")
    alone = dict(zip(noised.nodes, noised.per_pair.T, strict=True))
    torch.testing.assert_close(edges[EMBED, mlp(0)].whole, alone[mlp(0)], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        edges[EMBED, head(0, 1)].whole, alone[head(0, 1)], atol=1e-4, rtol=1e-4
    )
    for node in (head(1, 0), mlp(1)):
        torch.testing.assert_close(edges[node, LOGITS].whole, alone[node], atol=1e-4, rtol=1e-4)


def test_what_it_costs_is_announced(tiny_models: Any) -> None:
    """The work counted is near the estimate; a budget too small is refused before any edge."""
    model = tiny_models.load("native")
    task = as_task(random_pairs((6,) * 6, seed=12))
    totals: list[float] = []
    meter = Meter(
        progress=lambda done, total, what: totals.append(total) if what == "edges" else None
    )
    engine = Engine(model, task, meter=meter)
    engine.baseline("clean")
    before = meter.spent
    measure_edge_effects(engine, model.info.nodes())
    assert meter.spent - before == pytest.approx(totals[0], rel=1.0)
    poor = Engine(model, task, meter=Meter(limit=totals[0] / 2))
    with pytest.raises(BudgetError):
        measure_edge_effects(poor, model.info.nodes())
