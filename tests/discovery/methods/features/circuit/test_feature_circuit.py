"""Planted features of a known circuit become nodes of its record, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.known_circuits.hand_built import build_known_circuit
from benchmarks.known_circuits.truth import load_truth
from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery import add_features, load_model, load_task
from discovery.engine import Engine
from discovery.errors import MeasurementError
from discovery.features import load_sae
from discovery.graph import CircuitEdge, CircuitGraph, CircuitNode, ModelFacts, TaskFacts
from tests.tiny_saes import directions_module, random_module, save, signed_basis

ASKED = 5
OTHER = 6


def with_fixed_tokens(pair):
    """Exchange the pair's tokens so that the one it asks about is always ASKED.

    The model treats all words alike, so this changes nothing but their names.
    """
    new = {token: token for token in range(25)}
    differ = next({a, b} for a, b in zip(pair.clean, pair.corrupted, strict=True) if a != b)
    other = (differ - {pair.clean[-1]}).pop()
    for target, token in ((ASKED, pair.clean[-1]), (OTHER, other)):
        here = next(before for before, after in new.items() if after == target)
        new[token], new[here] = target, new[token]
    sides = {
        side: tuple(new[token] for token in getattr(pair, side))
        for side in ("clean", "corrupted", "answer", "wrong")
    }
    return replace(pair, **sides)


@pytest.fixture(scope="module")
def planted_circuit(tmp_path_factory):
    """The induction model, and an SAE of the stream's own directions between its two layers."""
    folder = tmp_path_factory.mktemp("induction")
    case = build_known_circuit("induction")
    case.save(folder / "model")
    model = load_model(folder / "model", device="cpu")
    task = load_task(folder / "model" / "task.jsonl", model, pairs=32)
    task = replace(task, pairs=tuple(map(with_fixed_tokens, task.pairs)))
    d_model = case.layout.d_model
    order = torch.randperm(2 * d_model, generator=torch.Generator().manual_seed(3))
    number = {
        int(place): feature for feature, place in enumerate(order.tolist()) if place < d_model
    }
    module = directions_module(
        signed_basis(d_model)[order], "blocks.1.hook_resid_pre", neuronpedia_id="toy/1"
    )
    sae = load_sae(save(module, folder / "sae"), model)
    circuit = CircuitGraph(
        model=ModelFacts(
            name="induction", fingerprint=model.info.fingerprint, n_layers=2, n_heads=4
        ),
        task=TaskFacts(name=task.name, metric=task.metric, fingerprint=task.fingerprint),
        verdict="verified",
        nodes=tuple(CircuitNode.of(name) for name in load_truth("induction").nodes),
        edges=(
            CircuitEdge(
                source=load_truth("induction").nodes[0], target=load_truth("induction").nodes[1]
            ),
        ),
    )
    result = add_features(model, circuit, task, sae, k=3)
    return SimpleNamespace(
        model=model,
        task=task,
        sae=sae,
        circuit=circuit,
        result=result,
        number=number,
        layout=case.layout,
        folder=folder,
    )


def test_the_planted_features_are_the_ones_between_the_heads(planted_circuit):
    """The nodes are features of `prev`, which one head writes and the other reads as keys."""
    result, circuit = planted_circuit.result, planted_circuit.result.circuit
    previous, matcher = load_truth("induction").nodes
    expected = planted_circuit.number[planted_circuit.layout.content("prev")[ASKED - 1]]
    node = next(node for node in circuit.nodes if node.feature and node.feature.index == expected)
    holding = [candidate for candidate in result.candidates if candidate.why is None]
    assert result.candidates[0].node == node.node
    assert {str(one.node) for one in holding} == {str(one) for one in circuit.features}
    assert node.effect.noising.mean > 0.9
    assert node.feature.activation.mean > 0.9
    into = next(edge for edge in circuit.edges if (edge.source, edge.target) == (previous, node.id))
    assert set(into.inputs) == {"feature"}
    assert into.effect.mean == pytest.approx(
        node.effect.noising.mean, abs=0.1
    )  # all of it comes from this head
    assert into.activation.mean == pytest.approx(1, abs=0.1)
    out = next(edge for edge in circuit.edges if (edge.source, edge.target) == (node.id, matcher))
    assert abs(out.inputs["k"].mean) > 10 * max(
        abs(out.inputs["q"].mean), abs(out.inputs["v"].mean)
    )
    assert out.effect.mean == pytest.approx(
        node.effect.noising.mean, abs=0.1
    )  # and all of it goes to the keys
    assert not any((edge.source, edge.target) == (node.id, "logits") for edge in circuit.edges)
    assert node.feature.link == f"https://neuronpedia.org/toy/1/{node.feature.index}"
    assert node.evidence == (result.result_id,)


def test_the_verdict_and_the_circuit_stay_as_they_were(planted_circuit):
    result, before = planted_circuit.result.circuit, planted_circuit.circuit
    assert (result.verdict, result.members, result.size, result.evaluation) == (
        before.verdict,
        before.members,
        before.size,
        before.evaluation,
    )
    assert [edge for edge in result.edges if "f" not in (edge.source[0], edge.target[0])] == list(
        before.edges
    )
    [facts] = result.dictionaries
    assert "no verdict" in facts.note
    assert (facts.layer, facts.site, facts.d_sae) == (
        1,
        "resid_pre",
        planted_circuit.sae.d_sae,
    )
    assert facts.variance_explained == pytest.approx(1, abs=1e-5)
    assert (facts.found_on, facts.verified_on) == (
        len(planted_circuit.task.discovery),
        len(planted_circuit.task.heldout),
    )
    assert facts.candidates[0] == str(planted_circuit.result.candidates[0].node)


def test_measured_again_they_replace_what_was_there(planted_circuit):
    again = add_features(
        planted_circuit.model,
        planted_circuit.result.circuit,
        planted_circuit.task,
        planted_circuit.sae,
        k=3,
    )
    assert again.circuit == planted_circuit.result.circuit
    none = add_features(
        planted_circuit.model,
        planted_circuit.result.circuit,
        planted_circuit.task,
        planted_circuit.sae,
        k=1,
        positions=[0],
    )
    assert none.circuit.features == ()
    assert len(none.circuit.dictionaries) == 1
    assert none.circuit.edges == planted_circuit.circuit.edges


def test_candidates_that_do_not_hold_say_why(planted_circuit):
    reasons = [one.why for one in planted_circuit.result.candidates if one.why]
    assert reasons
    assert all(
        any(word in why for word in ("below 0.01", "contains 0", "chance", "pushes"))
        for why in reasons
    )
    few = replace(planted_circuit.task, pairs=planted_circuit.task.pairs[:4], splits=(None,) * 4)
    result = add_features(
        planted_circuit.model, planted_circuit.circuit, few, planted_circuit.sae, k=5, controls=0
    )
    assert result.circuit.features == ()
    assert any("chance" in (one.why or "") for one in result.candidates)
    assert any("not split" in warning for warning in result.warnings)
    assert any("other pairs" in warning for warning in result.warnings)


def test_the_record_travels_through_every_format(planted_circuit):
    circuit = planted_circuit.result.circuit
    assert CircuitGraph.from_json(circuit.to_json()) == circuit
    assert CircuitGraph.from_graphml(circuit.to_graphml()) == circuit
    first = str(circuit.features[0])
    assert f'"{first}"' in circuit.to_dot()
    assert "shape=hexagon" in circuit.to_dot()
    assert f"{first.replace('.', '_')}{{{{" in circuit.to_mermaid()


def test_arrays_hold_every_pair(planted_circuit):
    arrays, result = planted_circuit.result.arrays, planted_circuit.result
    assert arrays["noised"].shape == (len(planted_circuit.task.heldout), len(result.candidates))
    assert arrays["edges"].shape == (len(planted_circuit.task.discovery), len(result.edges))
    clean = Engine(planted_circuit.model, planted_circuit.task.heldout).baseline("clean")
    corrupted = Engine(planted_circuit.model, planted_circuit.task.heldout).baseline("corrupted")
    share = (clean - arrays["noised"][:, 0]).mean() / (clean - corrupted).mean()
    assert float(share) == pytest.approx(result.candidates[0].noising.mean, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 2.5}, "k is 2.5"),
        ({"steps": 0}, "steps is 0"),
        ({"controls": -1}, "controls is -1"),
        ({"positions": []}, "positions is"),
        ({"circuit": CircuitGraph(verdict="no_behaviour")}, "no_behaviour"),
        ({"circuit": CircuitGraph(model=ModelFacts(fingerprint="0" * 64))}, "other weights"),
    ],
)
def test_bad_input(planted_circuit, change, message):
    arguments = {"circuit": planted_circuit.circuit, **change}
    with pytest.raises(MeasurementError, match=message):
        add_features(
            planted_circuit.model,
            arguments.pop("circuit"),
            planted_circuit.task,
            planted_circuit.sae,
            **arguments,
        )


def test_sides_that_do_not_differ_and_saes_of_queries_are_refused(
    planted_circuit, tiny_models, tmp_path
):
    pairs = tuple(replace(pair, corrupted=pair.clean) for pair in planted_circuit.task.pairs)
    with pytest.raises(MeasurementError, match="do not differ"):
        add_features(
            planted_circuit.model,
            planted_circuit.circuit,
            replace(planted_circuit.task, pairs=pairs),
            planted_circuit.sae,
        )
    model = tiny_models.load("native")
    queries = load_sae(
        save(random_module("standard", 18, 20, "blocks.1.attn.hook_q"), tmp_path / "q"), model
    )
    with pytest.raises(MeasurementError, match="no part of the residual stream"):
        add_features(model, CircuitGraph(), as_task(random_pairs((6, 6, 5))), queries)
