"""Condition (d): contexts, drops, p-values and padding.

They are compared with all nodes on all pairs, and with what the weights give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from benchmarks.known_circuits.truth import load_truth
from discovery.evaluation.contexts import (
    CONTEXT_PAIRS,
    ContextDrop,
    choose_contexts,
)
from discovery.evaluation.minimality import (
    decide_nodes,
    find_weak_nodes,
    measure_minimality,
    minimal_drop,
    try_without_padding,
)
from discovery.evaluation.sequential import select_nodes
from discovery.methods.ablation import NodeSet
from discovery.methods.statistics import holm, sign_flip_tests
from discovery.sites import Node, head
from tests.discovery.evaluation.synthetic import SyntheticPairs
from tests.oracles.evaluation.condition_rules import ConditionOracle, sign_flip_by_definition
from tests.oracles.evaluation.faithfulness import nodes


def grid(layers: int, heads: int) -> list[Node]:
    return [head(layer, index) for layer in range(layers) for index in range(heads)]


def additive(effects: Mapping[Node, float]) -> Callable[[NodeSet], float]:
    """f of a set: the sum of the effects of its nodes."""
    return lambda kept: sum(effects.get(node, 0.0) for node in kept)


def both(f: Any) -> dict[Any, Any]:
    return {"resample": f, "mean": f}


def measure(f: Any, circuit: NodeSet, delta: float = 0.02) -> Any:
    """The rows and the check of (d), with f on both splits and under both ablations."""
    delta_of: Any = {"resample": delta, "mean": delta}
    contexts = choose_contexts(both(f), circuit, delta_of)
    selection = select_nodes(circuit, sorted(circuit), 0, "minimality", smallest_effect=True)
    return measure_minimality(both(f), circuit, selection, contexts, delta_of, 0)


@pytest.mark.parametrize("ablation", ["resample", "mean"])
@pytest.mark.parametrize("name", ["induction", "or_mlp", "or_softmax"])
def test_contexts_and_drops_are_what_the_weights_give(
    name: str, ablation: Any, load_case: Callable[[str], Any]
) -> None:
    """The truth is needed in some context, and a node that does nothing is in none."""
    case = load_case(name)
    f = case.f(ablation)
    oracle = case.oracle(ablation)
    idle = nodes("a0.h1" if name != "or_softmax" else "a0.h2")
    circuit = nodes(*load_truth(name).nodes) | idle
    delta = minimal_drop(float(f([circuit])[0]), len(circuit))
    contexts = choose_contexts({ablation: f}, circuit, {ablation: delta})[ablation]
    assert set(contexts) == circuit
    for v, chosen in contexts.items():
        assert v not in chosen.context
        assert chosen.drop == pytest.approx(oracle.drop(circuit, chosen.context, v), abs=1e-4)
        assert (chosen.drop >= delta) is (str(v) in load_truth(name).nodes)
    selection = select_nodes(circuit, [], 0, "minimality")
    rows, check = measure_minimality(
        {ablation: f}, circuit, selection, {ablation: contexts}, {ablation: delta}, 0
    )
    assert [row.node for row in rows[ablation]] == [str(v) for v in sorted(circuit)]
    assert (check.checked, check.unchecked, check.unchecked_bound) == (len(circuit), 0, None)
    needs = decide_nodes(rows, {ablation: delta})
    assert {node for node, need in needs.items() if need == "holds"} == set(load_truth(name).nodes)
    assert needs[str(min(idle))] == "fails"
    for row in rows[ablation]:
        (v,) = nodes(row.node)
        assert row.drop == pytest.approx(oracle.drop(circuit, nodes(*row.context), v), abs=1e-4)
        assert row.n == f.n_pairs


@pytest.mark.parametrize("n_copies", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("n_others", [1, 5, 12, 40])
def test_nodes_that_do_the_same_work_are_needed_once_the_others_are_out(
    n_copies: int, n_others: int
) -> None:
    """An OR of up to six nodes among others that are all needed alone."""
    copies = [head(3, index) for index in range(n_copies)]
    others = [head(n // 8, 10 + n % 8) for n in range(n_others)]

    def value(kept: NodeSet) -> float:
        return 0.5 * any(v in kept for v in copies) + 0.5 * len(kept & set(others)) / n_others

    circuit = frozenset([*copies, *others])
    f: Any = SyntheticPairs(circuit, value, n_pairs=40)
    delta = minimal_drop(1.0, len(circuit))
    contexts = choose_contexts({"mean": f}, circuit, {"mean": delta})["mean"]
    for v in copies:
        assert contexts[v].drop == pytest.approx(0.5), contexts[v]
        assert contexts[v].context >= set(copies) - {v}
    for v in others:
        assert contexts[v] == ContextDrop(frozenset(), pytest.approx(0.5 / n_others))
    oracle = ConditionOracle(f.everything, lambda kept: f.metric(kept).tolist())
    if len(circuit) <= 10:
        for v in circuit:
            assert contexts[v].drop == pytest.approx(oracle.largest_drop(circuit, v, 5))


def test_a_backup_is_needed_once_what_it_backs_up_is_out() -> None:
    """The backup acts only without the primary node, which is one of 50."""
    primary, backup = head(0, 0), head(9, 9)
    others = [v for v in grid(6, 8) if v != primary]

    def value(kept: NodeSet) -> float:
        work = 0.3 if primary in kept else 0.28 * (backup in kept)
        return work + 0.7 * len(kept & set(others)) / len(others)

    circuit = frozenset([primary, backup, *others])
    f: Any = SyntheticPairs(circuit, value)
    contexts = choose_contexts({"mean": f}, circuit, {"mean": 0.0099})["mean"]
    assert contexts[backup] == ContextDrop(frozenset({primary}), pytest.approx(0.28))
    assert contexts[primary] == ContextDrop(frozenset(), pytest.approx(0.02))


def test_contexts_are_searched_for_nodes_that_fall_short_only() -> None:
    """Nodes that reach 1.25 δ under either ablation cost one set each."""
    circuit = frozenset(grid(5, 8))
    needed: Any = SyntheticPairs(circuit, lambda kept: len(kept) / 40)
    idle: Any = SyntheticPairs(circuit, lambda kept: float(bool(kept)))
    contexts = choose_contexts(
        {"resample": needed, "mean": idle}, circuit, {"resample": 0.0125, "mean": 0.0125}
    )
    assert {chosen.context for by_node in contexts.values() for chosen in by_node.values()} == {
        frozenset()
    }
    assert needed.cost == idle.cost == 41 * CONTEXT_PAIRS


def test_the_search_for_contexts_costs_a_bounded_number_of_prompts() -> None:
    circuit = frozenset(grid(10, 8))
    effects = {v: 0.0 if v.layer == 9 else 1 / 72 for v in circuit}
    f: Any = SyntheticPairs(circuit, additive(effects))
    choose_contexts({"mean": f}, circuit, {"mean": 0.00625})
    for_all = 81 * CONTEXT_PAIRS
    singles = 2 * 2 * 8 + 16 * 8 + 4 * 24
    greedy = 4 * 2 * (6 * 8 + 24)
    assert f.cost <= for_all + 8 * (singles + greedy)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
def test_few_pairs_agree_with_all_pairs(noise: float) -> None:
    """A node has another outcome only if its drop on all pairs is within the error of δ."""
    effects = {v: n / 2000 for n, v in enumerate(grid(5, 8))}
    circuit = frozenset(effects)
    f: Any = SyntheticPairs(circuit, additive(effects), noise=noise)
    scale = sum(effects.values())
    oracle = ConditionOracle(f.everything, lambda kept: f.metric(kept).tolist())
    delta = 0.0125
    none = {v: ContextDrop(frozenset(), 0.0) for v in circuit}
    rows, _ = measure_minimality(
        both(f), circuit, select_nodes(circuit, [], 0, "m"), both(none), both(delta), 0
    )
    needs = decide_nodes(rows, both(delta))
    whole = oracle.f(circuit)
    error = noise * np.sqrt(2) / np.sqrt(100) / scale
    for row in rows["mean"]:
        (v,) = nodes(row.node)
        drop = abs(whole - oracle.f(circuit - {v}))
        assert row.drop == pytest.approx(drop, abs=4 * error * np.sqrt(100 / row.n) + 1e-9)
        if row.n == 100:
            assert row.drop == pytest.approx(drop, abs=1e-9)
        elif needs[row.node] == "holds":
            assert drop >= delta
        else:
            assert drop < delta
    refined = {row.node for by_ablation in rows.values() for row in by_ablation if row.n == 100}
    assert len(refined) >= 8


def test_p_values_are_those_of_all_signs_and_holms_correction_is_over_both_ablations() -> None:
    circuit = frozenset(grid(1, 4))
    f: Any = SyntheticPairs(circuit, lambda kept: len(kept) / 4, n_pairs=10, noise=0.3)
    rows, check = measure(f, circuit)
    p_values = []
    for ablation in ("resample", "mean"):
        for row in rows[ablation]:
            (v,) = nodes(row.node)
            kept = circuit - nodes(*row.context)
            change = f.metric(kept) - f.metric(kept - {v})
            assert row.p == pytest.approx(sign_flip_by_definition(change.tolist()))
            p_values.append(row.p)
    corrected = [row.p_holm for rows_of in rows.values() for row in rows_of]
    assert corrected == pytest.approx(holm(p_values))
    assert check.flips == 10_000


def test_drawn_signs_give_the_p_of_all_signs_within_their_error() -> None:
    generator = np.random.default_rng(0)
    differences = generator.normal(0.3, 1.0, (12, 5))
    exact = sign_flip_tests(differences, 0, 5000)
    drawn = sign_flip_tests(differences, 0, 4000)
    assert exact == pytest.approx(
        [sign_flip_by_definition(column.tolist()) for column in differences.T]
    )
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(0.25 / 4000))
    assert sign_flip_tests(np.zeros((3, 1)), 0) == [1.0]
    assert sign_flip_tests(np.ones((1, 1)), 0) == [1.0]


def test_of_more_than_64_nodes_the_weakest_and_random_ones_are_checked() -> None:
    """A third of the unchecked nodes is idle: the draw finds some, and the bound covers them."""
    universe = grid(15, 10)
    effects = {v: 0.0 if n % 3 == 0 else 0.01 for n, v in enumerate(universe)}
    circuit = frozenset(universe)
    ranking = sorted(universe, key=lambda v: -effects[v])
    selection = select_nodes(circuit, ranking, 0, "minimality", smallest_effect=True)
    assert set(selection.by_effect) == set(ranking[-32:])
    assert len(selection.checked) == 64
    f: Any = SyntheticPairs(circuit, additive(effects))
    none = both({v: ContextDrop(frozenset(), 0.0) for v in circuit})
    rows, check = measure_minimality(both(f), circuit, selection, none, both(0.003), 0)
    assert (check.checked, check.unchecked) == (64, 86)
    assert len(rows["mean"]) == 64
    share = sum(effects[v] == 0 for v in selection.unchecked) / 86
    assert share <= check.unchecked_bound < share + 0.25


def test_padding_is_found() -> None:
    """Ten nodes carry the behaviour, and thirty with 0.012 each fill the circuit up."""
    universe = grid(6, 10)
    needed, padding = universe[:10], universe[10:40]

    def find(effects: Mapping[Node, float]) -> Any:
        f: Any = SyntheticPairs(universe, additive(effects))
        circuit = frozenset(needed + padding)
        rows, _ = measure(f, circuit, minimal_drop(1.0, len(circuit)))
        assert set(decide_nodes(rows, both(minimal_drop(1.0, 40))).values()) == {"holds"}
        return try_without_padding(both(f), circuit, find_weak_nodes(rows), universe, 0)

    signs = dict.fromkeys(padding[:15], 0.0126) | dict.fromkeys(padding[15:], -0.0126)
    padded = find(dict.fromkeys(needed, 0.1) | signs)
    assert [(len(trial.left_out), trial.meets, trial.why_not) for trial in padded] == [
        (30, True, None),
        (15, True, None),
    ]
    spread = find(dict.fromkeys(needed, 0.05) | dict.fromkeys(padding, 0.0167))
    assert [trial.meets for trial in spread] == [False, False]
    assert [trial.why_not for trial in spread] == [
        "(a) under resample: f = 0.500",
        "(a) under resample: f = 0.750",
    ]
    assert [len(trial.left_out) for trial in spread] == [30, 15]
