"""Mending on functions of the set whose circuit is known, and on functions of any values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.known_circuits.subset_conditions import ConditionsBySubset
from discovery.agent.search import mend as module
from discovery.agent.search.decision import Decision
from discovery.agent.search.mend import MAX_EXAMINED_SETS, Faults, find_faults, mend
from discovery.evaluation import find_contexts
from discovery.evaluation.minimality import find_largest_drops
from discovery.evaluation.thresholds import MIN_DROP
from discovery.methods.ablation import NodeSet
from discovery.sites import Node
from tests.discovery.agent.search.set_functions import (
    FEW,
    GATES,
    UNIVERSE,
    A,
    B,
    E,
    G,
    M,
    and_gate,
    f_from_tables,
    f_under_both_ablations,
    ignore_decision,
    or_gate,
    tables,
)
from tests.discovery.evaluation.synthetic import SyntheticFaithfulness, subsets


@pytest.mark.parametrize("noise", [0.0, 0.008])
@pytest.mark.parametrize(
    "start", ["everything", "the first that is faithful", "nothing", "the gate and two bystanders"]
)
@pytest.mark.parametrize("name", GATES)
def test_a_gate_is_found(name: str, start: str, noise: float) -> None:
    """Wherever the search begins, and with a little noise from every node.

    Only a gate of five cannot be reached from the empty set, because no single step towards it
    changes f. A real search begins with a set that works.
    """
    if (name, start, noise) == ("chain", "nothing", 0.0):
        start = "the first that is faithful"
    value, gate = GATES[name]
    f = f_under_both_ablations(value, noise=noise)
    bystanders = [node for node in UNIVERSE if node not in gate][:2]
    starts = {
        "everything": frozenset(UNIVERSE),
        "the first that is faithful": next(s for s in subsets(UNIVERSE) if s and value(s) >= 0.9),
        "nothing": frozenset[Node](),
        "the gate and two bystanders": frozenset(gate | set(bystanders)),
    }
    decisions: list[Decision] = []
    circuit = mend(f, starts[start], decisions.append)
    assert circuit == gate, decisions
    assert find_faults(f, circuit).severity == (0.0, 0)
    assert all(decision.concluded and decision.why for decision in decisions)
    assert len(decisions) <= MAX_EXAMINED_SETS + 1, "one more for going back"


def test_a_search_that_does_not_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It announces nothing that it does not do."""
    value, gate = GATES["chain"]
    decisions: list[Decision] = []
    whole = frozenset(UNIVERSE)
    monkeypatch.setattr(module, "MAX_EXAMINED_SETS", 1)
    assert mend(f_under_both_ablations(value), whole, decisions.append) == whole
    assert [decision.stopped for decision in decisions] == ["limit"]
    assert decisions[0].concluded == "stop: no end in sight"
    monkeypatch.undo()
    assert mend(f_under_both_ablations(value), whole, decisions.append) == gate
    assert [decision.stopped for decision in decisions].count("limit") == 1


def test_a_node_that_only_one_ablation_needs_is_dropped() -> None:
    """(d) must hold under both: B moves f under mean alone, within what (a) to (c) allow."""
    f = f_under_both_ablations(and_gate, lambda kept: and_gate(kept) + 0.05 * (B in kept))
    assert mend(f, frozenset({A, B, E}), ignore_decision) == {A, E}


def test_a_decision_names_the_node_and_the_number() -> None:
    decisions: list[Decision] = []
    mend(f_under_both_ablations(or_gate), frozenset({A, M}), decisions.append)
    expected = {"gap": pytest.approx(1.0), "with": pytest.approx(0.0), "behind": "a0.h0"}
    assert decisions[0].concluded == "add a0.h1"
    assert decisions[0].measured == expected
    assert "without a0.h0 the model still works" in decisions[0].why
    decisions.clear()
    mend(f_under_both_ablations(and_gate), frozenset({A, E, G}), decisions.append)
    assert decisions[0].measured == {"a2.h0": pytest.approx(0.0)}
    assert decisions[0].concluded == "drop a2.h0"


@settings(deadline=None, max_examples=150)
@given(rows=st.lists(tables, min_size=2, max_size=2))
def test_faults_are_what_the_conditions_hold_against_a_set(rows: list[list[float]]) -> None:
    """No faults means that (a) to (d) hold under both, by an independent check."""
    f = f_from_tables(rows)
    names = [str(node) for node in FEW]
    judges = [ConditionsBySubset(names, [0.0, *row, 1.0]) for row in rows]
    for nodes in subsets(FEW):
        mask = sum(1 << FEW.index(node) for node in nodes)
        faults = find_faults(f, nodes)
        assert (faults.excess == 0) == all(judge.is_sufficient(mask) for judge in judges)
        assert (faults.incompleteness < 5e-7) == all(judge.is_complete(mask) for judge in judges)
        if faults.severity[0] == 0:
            contexts = [find_contexts(under_one, nodes) for under_one in f.values()]
            assert set(faults.unneeded_nodes) == {
                v for v in nodes if min(of_node[v][1] for of_node in contexts) < MIN_DROP
            }
            if all(judge.is_minimal(mask) for judge in judges):
                assert faults.severity == (0.0, 0)


@settings(deadline=None, max_examples=150)
@given(rows=st.lists(tables, min_size=2, max_size=2))
def test_the_short_way_to_the_largest_drops_agrees_on_which_nodes_are_needed(
    rows: list[list[float]],
) -> None:
    """Both agree on which nodes are needed, and the drops of the short way are never larger."""
    for f in f_from_tables(rows).values():
        for nodes in subsets(FEW):
            drops = find_largest_drops(f, nodes)
            contexts = find_contexts(f, nodes)
            assert {v: drop >= MIN_DROP for v, drop in drops.items()} == {
                v: drop >= MIN_DROP for v, (_, drop) in contexts.items()
            }
            assert all(drops[v] <= contexts[v][1] + 1e-9 for v in nodes)


class ExaminedSets:
    """Records which sets a search examines, and their faults."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.faults: dict[NodeSet, Faults] = {}

        def find_and_record(f_by_ablation: Any, circuit: NodeSet) -> Faults:
            faults = find_faults(f_by_ablation, circuit)
            self.faults[circuit] = faults
            return faults

        monkeypatch.setattr(module, "find_faults", find_and_record)


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(tables, min_size=2, max_size=2),
    start=st.sets(st.sampled_from(FEW)),
    budget=st.none() | st.integers(0, 16),
)
def test_it_ends_with_the_best_it_saw(
    rows: Any, start: set[Node], budget: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On any function, and wherever the budget ends; among equals it prefers the smaller set."""
    decisions: list[Decision] = []
    with monkeypatch.context() as patch:
        examined = ExaminedSets(patch).faults
        circuit = mend(f_from_tables(rows, budget), frozenset(start), decisions.append)
    assert len(examined) <= MAX_EXAMINED_SETS
    stops = [decision.stopped for decision in decisions]
    assert stops.count("budget") <= 1
    last = list(examined)[-1:]
    returns = [d for d in decisions if d.concluded.startswith("go back")]
    assert len(returns) == (last not in ([], [circuit]))
    if "budget" in stops:
        assert "budget" in stops[-2:]
        assert budget is not None
    if not examined:
        assert circuit == start
        return
    best = min(examined, key=lambda nodes: (examined[nodes].severity, len(nodes)))
    assert (examined[circuit].severity, len(circuit)) == (examined[best].severity, len(best))


def test_wherever_the_budget_ends_a_gate_only_gets_better() -> None:
    """A larger budget never gives a worse set, and a budget that suffices gives the gate."""
    value, gate = GATES["stand-in pair"]
    free = f_under_both_ablations(value)
    start = frozenset({A, E, G})
    mend(free, start, ignore_decision)
    enough = max(len(f.measured) for f in free.values())
    severities = []
    for budget in range(0, enough + 1, 3):
        circuit = mend(f_under_both_ablations(value, budget=budget), start, ignore_decision)
        severities.append(find_faults(f_under_both_ablations(value), circuit).severity)
    assert severities == sorted(severities, reverse=True)
    assert mend(f_under_both_ablations(value, budget=enough), start, ignore_decision) == gate


@pytest.mark.parametrize("size", [0, 1])
def test_a_universe_of_hardly_anything(size: int) -> None:
    universe = UNIVERSE[:size]
    f = {"resample": SyntheticFaithfulness(universe, lambda kept: float(len(kept)))}
    assert mend(f, frozenset(universe), ignore_decision) == frozenset(universe)
