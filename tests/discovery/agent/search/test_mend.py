"""Mending and its checks, on functions of the set whose circuit is known and on any values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.known_circuits.subset_conditions import ConditionsBySubset
from discovery.agent.search import descend
from discovery.agent.search import mend as module
from discovery.agent.search.backups import find_sufficient_subset
from discovery.agent.search.decision import Decision, ignore_decision
from discovery.agent.search.descend import Descent
from discovery.agent.search.faults import (
    add_drop_shares,
    find_faults,
    find_gaps_out,
)
from discovery.agent.search.fit import PLAIN, WITH_MARGIN
from discovery.agent.search.mend import MAX_EXAMINED_SETS, Mending
from discovery.errors import BudgetError
from discovery.graph import EVIDENCE_ABLATIONS
from discovery.methods.ablation import NodeSet
from discovery.sites import Node, head
from tests.discovery.agent.search.set_functions import (
    FEW,
    GATES,
    UNIVERSE,
    A,
    E,
    G,
    M,
    f_from_tables,
    f_over_heads,
    f_under_both_ablations,
    or_gate,
    tables,
    with_bystanders,
)
from tests.discovery.evaluation.synthetic import SyntheticFaithfulness, subsets


@pytest.mark.parametrize("name", GATES)
def test_what_a_gate_lacks_is_added(name: str) -> None:
    """From the gate without any one of its nodes."""
    value, gate = GATES[name]
    for node in gate:
        mending = Mending(f_under_both_ablations(value), UNIVERSE, 0, ignore_decision)
        assert gate <= mending.run(frozenset(gate - {node}))
        assert mending.faults_of[mending.best].severity(WITH_MARGIN) == 0


def test_a_search_that_does_not_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It announces nothing that it does not do."""
    decisions: list[Decision] = []
    start = frozenset({A, M})
    monkeypatch.setattr(module, "MAX_EXAMINED_SETS", 1)
    f = f_under_both_ablations(or_gate)
    assert Mending(f, UNIVERSE, 0, decisions.append).run(start) == start
    assert [decision.stopped for decision in decisions] == ["limit"]
    assert decisions[0].concluded == "stop: no end in sight"


def test_a_decision_names_the_node_and_the_number() -> None:
    decisions: list[Decision] = []
    f = f_under_both_ablations(or_gate)
    Mending(f, UNIVERSE, 0, decisions.append).run(frozenset({A, M}))
    expected = {"gap": pytest.approx(1.0), "behind": "a0.h0"}
    assert decisions[0].concluded == "add a0.h1"
    assert decisions[0].measured == expected
    assert "without a0.h0 the model still works" in decisions[0].why


@settings(deadline=None, max_examples=150)
@given(rows=st.lists(tables, min_size=2, max_size=2))
def test_faults_are_what_the_conditions_hold_against_a_set(rows: list[list[float]]) -> None:
    """No faults means that (a) to (c) hold under both, by an independent check."""
    f = f_from_tables(rows)
    names = [str(node) for node in FEW]
    judges = [ConditionsBySubset(names, [0.0, *row, 1.0]) for row in rows]
    for nodes in subsets(FEW):
        mask = sum(1 << FEW.index(node) for node in nodes)
        faults = find_faults(f, nodes, 0)
        is_sufficient = all(judge.is_sufficient(mask) for judge in judges)
        is_complete = all(judge.is_complete(mask) for judge in judges)
        assert (faults.excess(PLAIN) == 0) == is_sufficient
        assert (faults.severity(PLAIN) < 5e-7) == (is_sufficient and is_complete)
        assert faults.severity(PLAIN) <= faults.severity(WITH_MARGIN)


@settings(deadline=None, max_examples=150)
@given(rows=st.lists(tables, min_size=2, max_size=2))
def test_a_node_is_unneeded_if_no_context_reaches_delta(rows: list[list[float]]) -> None:
    """By every context there is: of four nodes, a context has at most three."""
    f = f_from_tables(rows)
    for nodes in subsets(FEW):
        faults = find_faults(f, nodes, 0)
        checked = add_drop_shares(f, nodes, faults)
        if faults.severity(PLAIN) > 0:
            assert checked == faults
            continue
        for v in nodes:
            largest = max(
                largest_share(of_ablation, nodes, v, faults.fit[ablation].faithfulness)
                for ablation, of_ablation in f.items()
            )
            assert checked.drop_shares[v] <= largest + 1e-9
            if len(nodes) <= 3:  # of four nodes, the greedy contexts are not all
                reaches = largest >= WITH_MARGIN.drop_share
                assert (checked.drop_shares[v] >= WITH_MARGIN.drop_share) == reaches


def test_shares_near_the_bound_are_measured_on_all_pairs() -> None:
    """The second head has a drop of 0.022 on the first pairs, and of 0.016 on all."""

    class LuckyPairs(SyntheticFaithfulness):
        def __call__(
            self, sets: Sequence[NodeSet], label: str = "ablation", pairs: int | None = None
        ) -> Tensor:
            luck = 0.006 if pairs is not None and pairs < self.n_pairs else 0.0
            added = torch.tensor([luck * (head(0, 1) in kept) for kept in sets])
            return super().__call__(sets, label) + added

    effects = {head(0, 0): 0.984, head(0, 1): 0.016}
    f: Any = {
        ablation: LuckyPairs(effects, lambda kept: sum(effects[v] for v in kept), n_pairs=64)
        for ablation in EVIDENCE_ABLATIONS
    }
    faults = find_faults(f, frozenset(effects), 0)
    shares = add_drop_shares(f, frozenset(effects), faults).drop_shares
    assert shares[head(0, 1)] == pytest.approx(0.016 / 0.02)


def largest_share(f: Any, nodes: NodeSet, v: Node, faithfulness: float) -> float:
    """Return the largest drop of a node in any context, as a share of δ."""
    delta = min(0.02, 0.5 * faithfulness / len(nodes))
    drops = []
    for context in subsets(nodes - {v}):
        with_v, without_v = f([nodes - context, nodes - context - {v}])
        drops.append(abs(float(with_v - without_v)))
    return max(drops) / delta


@pytest.mark.parametrize("limits", [(0.0, 0.0), (0.3, 0.0), (0.0, 0.3)])
def test_in_a_large_model_nodes_outside_are_found_in_groups(limits: tuple[float, float]) -> None:
    """Every node that matters alone is found, with fewer sets than nodes."""
    universe = [head(layer, h) for layer in range(20) for h in range(10)]
    main, plus, minus = universe[0], universe[77], universe[143]

    def value(kept: NodeSet) -> float:
        return float(main in kept) + limits[0] * (plus in kept) - limits[1] * (minus in kept)

    f = {
        "resample": SyntheticFaithfulness(universe, value),
        "mean": SyntheticFaithfulness(universe, lambda kept: float(main in kept)),
    }
    gaps = find_gaps_out(f, frozenset({main}), 0)  # type: ignore[arg-type]  # keys
    missing = {v for v, gap in gaps.items() if gap > PLAIN.gap_out}
    assert missing == {v for v, limit in zip((plus, minus), limits, strict=True) if limit}
    assert len(f["resample"].measured) < 0.5 * len(universe)


def test_two_nodes_that_cancel_are_found_unless_both_partitions_join_them() -> None:
    universe = [head(layer, h) for layer in range(20) for h in range(10)]
    main = universe[0]
    found = 0
    pairs = list(itertools.islice(itertools.combinations(universe[1:], 2), 0, None, 400))
    for plus, minus in pairs:

        def value(kept: NodeSet, plus: Node = plus, minus: Node = minus) -> float:
            return float(main in kept) + 0.3 * (plus in kept) - 0.3 * (minus in kept)

        f: Any = {"resample": SyntheticFaithfulness(universe, value)}
        gaps = find_gaps_out(f, frozenset({main}), 0)
        found += {v for v, gap in gaps.items() if gap > PLAIN.gap_out} == {plus, minus}
    assert found >= 0.95 * len(pairs)


@settings(deadline=None, max_examples=300)
@given(
    n_nodes=st.integers(1, 40),
    needed=st.sets(st.integers(0, 39), max_size=6),
    alternative=st.sets(st.integers(0, 39), min_size=1, max_size=3),
)
def test_a_smallest_part_that_is_enough(
    n_nodes: int, needed: set[int], alternative: set[int]
) -> None:
    """Of nodes that only work together, or of which either of two groups is enough."""
    nodes = [head(0, n) for n in range(n_nodes)]
    groups = [
        frozenset(nodes[n] for n in numbers if n < n_nodes) for numbers in (needed, alternative)
    ]
    calls = 0

    def are_enough(sets: Any) -> list[bool]:
        nonlocal calls
        calls += len(sets)
        return [any(group <= kept for group in groups) for kept in sets]

    found = frozenset(find_sufficient_subset(nodes, are_enough))
    assert found in groups or found == frozenset(nodes[:1]), "one node is always returned"
    for node in found if len(found) > 1 else ():
        assert not are_enough([found - {node}])[0]


def test_a_descent_leaves_weak_nodes_out_together_and_takes_backups_back() -> None:
    """G does the work of C when C is ablated; alone, it changes nothing."""
    value, gate = GATES["backup"]
    decisions: list[Decision] = []
    descent = Descent(f_under_both_ablations(value), decisions.append, frozenset(UNIVERSE))
    descent.run()
    assert descent.circuit == gate
    assert descent.contexts[G] == [frozenset({next(n for n in gate if n not in {A, G})})]
    assert "came back" in decisions[0].why


@pytest.mark.parametrize(("n_strong", "ends_early"), [(10, False), (39, True)])
def test_a_descent_ends_when_hardly_any_of_many_nodes_can_go(
    n_strong: int, ends_early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weak node goes in each round; of 39 nodes that is not worth a round."""
    nodes = [head(0, h) for h in range(n_strong + 3)]
    f = f_under_both_ablations(
        lambda kept: sum(v in kept for v in nodes[:n_strong]) / n_strong, universe=nodes
    )
    monkeypatch.setattr(Descent, "_find_largest_group", lambda self, weak: frozenset(weak[:1]))
    descent = Descent(f, ignore_decision, f["mean"].everything)
    descent.run()
    assert len(descent.circuit) == n_strong + (2 if ends_early else 0)


def test_a_descent_of_a_large_circuit_goes_on_with_the_gaps_that_it_last_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each round measures 16 of over 40 gaps. 24 nodes have 0.01 each, and 0.15 may go."""
    strong, weak = [head(0, h) for h in range(30)], [head(1, h) for h in range(24)]
    f = f_under_both_ablations(
        lambda kept: (
            (1 - 24 * 0.0101) * sum(v in kept for v in strong) / 30
            + 0.0101 * sum(v in kept for v in weak)
        ),
        universe=[*strong, *weak],
    )
    monkeypatch.setattr(descend, "BISECTION_STEP", 1.0)
    decisions: list[Decision] = []
    descent = Descent(f, decisions.append, f["mean"].everything)
    descent.run()
    assert [decision.measured["left out"] for decision in decisions] == [12, 2]
    assert descent.circuit.issuperset(strong)


@pytest.mark.parametrize(
    ("n_against", "n_left"),
    [pytest.param(0, 10, id="all for it"), pytest.param(14, 0, id="as many against it")],
)
def test_nodes_for_and_against_the_behaviour_go_together(n_against: int, n_left: int) -> None:
    """Of 20 nodes with 0.0149 each, 10 may go; if others cancel them, all may."""
    strong = [head(0, h) for h in range(4)]
    weak = [head(1, h) for h in range(20)]
    against = [head(2, h) for h in range(n_against)]
    effects = dict.fromkeys(weak, 0.0149) | dict.fromkeys(against, -0.0149)
    rest = 1 - sum(effects.values())
    effects |= dict.fromkeys(strong, rest / len(strong))
    f = f_under_both_ablations(lambda kept: sum(effects[v] for v in kept), universe=[*effects])
    descent = Descent(f, ignore_decision, f["mean"].everything)
    descent.run()
    assert descent.circuit.issuperset(strong)
    assert len(descent.circuit - set(strong)) == n_left


def test_a_descent_keeps_what_it_has_when_the_budget_ends() -> None:
    f = f_over_heads(with_bystanders(0.001, 0.002), budget=6)
    descent = Descent(f, ignore_decision, f["mean"].everything)
    with pytest.raises(BudgetError):
        descent.run()
    assert head(0, 0) in descent.circuit


@settings(deadline=None, max_examples=150)
@given(
    rows=st.lists(tables, min_size=2, max_size=2),
    start=st.sets(st.sampled_from(FEW), min_size=1),
)
def test_it_ends_with_the_best_it_saw(rows: Any, start: set[Node]) -> None:
    """On any function; among equals it prefers the smaller set."""
    mending = Mending(f_from_tables(rows), FEW, 0, ignore_decision)
    circuit = mending.run(frozenset(start))
    assert len(mending.faults_of) <= MAX_EXAMINED_SETS
    faults_of = mending.faults_of
    best = min(faults_of, key=lambda nodes: (faults_of[nodes].order, len(nodes)))
    assert (faults_of[circuit].order, len(circuit)) == (faults_of[best].order, len(best))


@pytest.mark.parametrize("size", [0, 1])
def test_a_universe_of_hardly_anything(size: int) -> None:
    universe = UNIVERSE[:size]
    f: Any = {"resample": SyntheticFaithfulness(universe, lambda kept: float(len(kept)))}
    mending = Mending(f, universe, 0, ignore_decision)
    assert mending.run(frozenset(universe)) == frozenset(universe)


def test_the_end_of_the_budget_is_told() -> None:
    f = f_under_both_ablations(or_gate, budget=3)
    with pytest.raises(BudgetError):
        Mending(f, UNIVERSE, 0, ignore_decision).run(frozenset({A, E}))
