"""The stored truth is right.

Every true node has its witness, random subsets find no other node, and brute force agrees.
"""

from __future__ import annotations

import json
import random

import pytest
import torch

from benchmarks.known_circuits.hand_built import KNOWN_CIRCUITS, build_known_circuit
from benchmarks.known_circuits.subset_conditions import ConditionsBySubset, find_passing_sets
from benchmarks.known_circuits.truth import (
    ABLATIONS,
    MAX_HIDDEN_EFFECT,
    MIN_TRUE_EFFECT,
    TRUTH_FILE,
    Ablation,
    compute_fingerprint,
    find_truth,
    group_pairs,
    load_hidden_nodes,
    load_truth,
    measure_f,
    measure_single_effects,
    tabulate_f,
)

MIN_CLEAR_EFFECT = 0.13
MAX_FALSE_EFFECT = 0.07
ROLES_WITHOUT_PART = {"distractor", "large without effect", "slight"}
HIDDEN = {"or_softmax_gated": ("a0.h1", "a0.h2"), "backup": ("a2.h0",)}


class _TablesOnDemand(dict[tuple[str, Ablation], torch.Tensor]):
    def __missing__(self, key: tuple[str, Ablation]) -> torch.Tensor:
        case = build_known_circuit(key[0])
        self[key] = tabulate_f(case, group_pairs(case), key[1])
        return self[key]


@pytest.fixture(scope="module")
def stored():
    return json.loads(TRUTH_FILE.read_text())


@pytest.fixture(scope="module")
def tables():
    """f of every subset, by model and ablation, computed when it is first used."""
    return _TablesOnDemand()


@pytest.mark.parametrize("name", KNOWN_CIRCUITS)
def test_the_stored_truth_is_of_these_weights_and_pairs(name, stored):
    assert list(stored) == list(KNOWN_CIRCUITS)
    assert stored[name]["fingerprint"] == compute_fingerprint(build_known_circuit(name)), (
        "the models changed: run python -m benchmarks.known_circuits.truth"
    )


@pytest.mark.parametrize("name", KNOWN_CIRCUITS)
def test_the_truth_is_what_was_constructed(name):
    """It holds every node with a part and no other, under both ablations, with clear margins."""
    case = build_known_circuit(name)
    constructed = tuple(
        node for node in case.universe if case.roles[node] not in ROLES_WITHOUT_PART
    )
    for ablation in ABLATIONS:
        truth = load_truth(name, ablation)
        assert truth.nodes == constructed
        assert min(truth.largest[node] for node in constructed) >= MIN_CLEAR_EFFECT
        assert (
            max(gap for node, gap in truth.largest.items() if node not in constructed)
            <= MAX_FALSE_EFFECT
        )
    assert load_hidden_nodes(name) == HIDDEN.get(name, ())


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", KNOWN_CIRCUITS)
def test_every_member_has_a_witness(name, ablation):
    """The stored set S gives the stored |f(S ∪ v) − f(S)|."""
    case = build_known_circuit(name)
    truth = load_truth(name, ablation)
    subsets = [extra + truth.witness[node] for node in truth.nodes for extra in ((), (node,))]
    f = measure_f(case, group_pairs(case), ablation, subsets).view(-1, 2)  # [node without/with]
    largest = torch.tensor([truth.largest[node] for node in truth.nodes], dtype=torch.float64)
    torch.testing.assert_close((f[:, 1] - f[:, 0]).abs(), largest, atol=1e-5, rtol=0)
    assert (largest >= MIN_TRUE_EFFECT).all()


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", KNOWN_CIRCUITS)
def test_random_subsets_stay_within_the_stored_maximum(name, ablation):
    case = build_known_circuit(name)
    truth = load_truth(name, ablation)
    rng = random.Random(name + ablation)
    subsets: list[tuple[str, ...]] = []
    tested_nodes = [node for node in case.universe for _ in range(3)]
    for node in tested_nodes:
        subset = tuple(other for other in case.universe if other != node and rng.random() < 0.5)
        subsets += [subset, (*subset, node)]
    f = measure_f(case, group_pairs(case), ablation, subsets).view(-1, 2)
    for node, (without, with_it) in zip(tested_nodes, f.tolist(), strict=True):
        assert abs(with_it - without) <= truth.largest[node] + 1e-5


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_nodes_show_in_sets_only(name):
    """Alone they have no effect, but with certain nodes ablated they carry the behaviour."""
    case = build_known_circuit(name)
    parts = group_pairs(case)
    singles = measure_single_effects(case, parts)
    for node in HIDDEN[name]:
        assert max(map(abs, singles[node])) < MAX_HIDDEN_EFFECT
        partners = {"a2.h0": ["a1.h3"], "a0.h1": ["a0.h2"], "a0.h2": ["a0.h1"]}[node]
        with_node = [other for other in case.universe if other not in partners]
        without_node = [other for other in with_node if other != node]
        for ablation in ABLATIONS:
            f_with, f_without = measure_f(case, parts, ablation, [with_node, without_node]).tolist()
            assert f_with > 0.6
            assert abs(f_without) < 0.1


def test_opposing_and_twin_effects_are_what_their_gains_say():
    """The effects follow from the gains.

    An opposing head of gain g leaves a net gain of 1 − g, so f = 1 / (1 − g) without it. A twin of
    gain ±0.4 moves f by 0.4.
    """
    for name, gain in (("opposing_030", 0.30), ("opposing_015", 0.15)):
        case = build_known_circuit(name, noise=0.0)
        rest = [node for node in case.universe if case.roles[node] != "opposing"]
        for ablation in ABLATIONS:
            assert measure_f(case, group_pairs(case), ablation, [rest]).item() == pytest.approx(
                1 / (1 - gain), abs=0.02
            )
    case = build_known_circuit("cancelling_twins", noise=0.0)
    plus, minus = case.nodes("twin")
    for ablation in ABLATIONS:
        subsets = [
            [node for node in case.universe if node not in ablated]
            for ablated in ((plus,), (minus,), (plus, minus))
        ]
        f = measure_f(case, group_pairs(case), ablation, subsets).tolist()
        assert f == pytest.approx([0.6, 1.4, 1.0], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", KNOWN_CIRCUITS)
def test_brute_force_gives_the_stored_truth(name, ablation, tables):
    case = build_known_circuit(name)
    truth = load_truth(name, ablation)
    recomputed = find_truth(case.universe, tables[name, ablation])
    assert recomputed.nodes == truth.nodes
    assert recomputed.largest == pytest.approx(truth.largest, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN_CIRCUITS)
def test_the_truth_is_the_only_circuit_that_meets_the_conditions(name, tables):
    """So a search that proves (a) to (d) has found the truth.

    The exceptions are heads whose largest effect reaches 0.02 under an ablation: a head of 0.05,
    and a distractor of 0.023. They are not needed in a circuit, and not forbidden in one.
    """
    case = build_known_circuit(name)
    by_ablation = [
        ConditionsBySubset(case.universe, tables[name, ablation].tolist()) for ablation in ABLATIONS
    ]
    truth = load_truth(name).nodes
    expected = {truth}
    loud = {
        node
        for ablation in ABLATIONS
        for node, effect in load_truth(name, ablation).largest.items()
        if node not in truth and effect >= 0.02
    }
    if loud:
        assert len(loud) == 1, "with two of them, four sets could pass"
        expected.add(tuple(node for node in case.universe if node in {*truth, *loud}))
    assert set(find_passing_sets(by_ablation)) == expected
