"""Condition (e): which sets are tried, how many there are, and which of them is as good."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.known_circuits.truth import load_truth
from discovery.evaluation import alternatives, find_rivals
from discovery.evaluation.alternatives import (
    beats_alternatives,
    draw_alternatives,
    measure_random_controls,
)
from discovery.graph import Control
from discovery.methods.ablation import NodeSet
from discovery.sites import Node, head, mlp
from tests.discovery.evaluation.synthetic import SyntheticFaithfulness
from tests.oracles.evaluation.alternatives import matched_sets, rivals_by_definition, shape
from tests.oracles.evaluation.faithfulness import nodes


def universe(layers: int, heads: int) -> list[Node]:
    return [
        node
        for layer in range(layers)
        for node in (*(head(layer, h) for h in range(heads)), mlp(layer))
    ]


@pytest.mark.parametrize("by_layer", [False, True])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_every_alternative_is_tried_once_if_they_are_few(
    by_layer: bool, data: st.DataObject
) -> None:
    members = universe(2, 3)
    circuit = frozenset(data.draw(st.sets(st.sampled_from(members))))
    f = SyntheticFaithfulness(members, lambda kept: 1.0 - len(kept ^ circuit))
    expected = matched_sets(f.everything, circuit, by_layer=by_layer)
    rivals, control = find_rivals(f, circuit, [], 0, by_layer=by_layer)
    assert control == (
        Control(n=len(expected), n_possible=len(expected), as_good=0, p=1 / (1 + len(expected)))
        if expected
        else None
    )
    assert rivals == []
    if expected:
        assert set(expected) <= set(f.measured)


def test_at_most_200_are_all_taken_beyond_that_200_different_ones() -> None:
    """201 possible alternatives is the first number of which some are left out."""
    for count, size in ((201, 1), (202, 1), (24, 3)):
        members = [head(0, h) for h in range(count)]
        circuit = frozenset(members[:size])
        alternatives, possible = draw_alternatives([(members, size)], circuit, 0)
        assert possible == math.comb(count, size) - 1
        assert len(alternatives) == len(set(alternatives)) == min(possible, 200)
        assert circuit not in alternatives
        assert {len(nodes_of_set) for nodes_of_set in alternatives} == {size}
        assert draw_alternatives([(members, size)], circuit, 0)[0] == alternatives
    assert set(draw_alternatives([(members, 3)], circuit, 1)[0]) != set(alternatives)


def test_drawn_alternatives_keep_each_groups_number() -> None:
    members = universe(4, 6)
    circuit = frozenset(random.Random(0).sample(members, 9))
    f = SyntheticFaithfulness(members, lambda kept: float(kept == circuit))
    for by_layer in (False, True):
        f.measured.clear()
        _, control = find_rivals(f, circuit, [], 0, by_layer=by_layer)
        assert control is not None
        alternatives = f.measured.keys() - {circuit}
        assert control.n == 39 == len(alternatives), "none of the first 39 is as good"
        assert {
            tuple(sorted(shape(candidate, by_layer=by_layer).items(), key=str))
            for candidate in alternatives
        } == {tuple(sorted(shape(circuit, by_layer=by_layer).items(), key=str))}
        sizes = Counter((node.kind, node.layer if by_layer else None) for node in members)
        circuit_shape = shape(circuit, by_layer=by_layer)
        assert (
            control.n_possible
            == math.prod(math.comb(sizes[key], circuit_shape[key]) for key in sizes) - 1
        )


def two_answers(kept: NodeSet) -> float:
    """Either of two heads and the MLP do it all (that is: two circuits of the same shape)."""
    return float(bool(kept & nodes("a0.h0", "a0.h1")) and mlp(0) in kept)


def test_as_good_means_as_faithful_and_itself_necessary_and_complete() -> None:
    """The other half of an OR is as faithful, but the model works without it: it is no rival."""
    f = SyntheticFaithfulness(universe(1, 3), two_answers)
    assert find_rivals(f, nodes("a0.h0", "m0"), [], 0, by_layer=True)[0] == []
    bystander = SyntheticFaithfulness(
        universe(1, 4), lambda kept: float({head(0, 0), mlp(0)} <= kept)
    )
    with_bystander = nodes("a0.h0", "a0.h2", "m0")
    rivals = find_rivals(bystander, with_bystander, [], 0, by_layer=True)[0]
    assert set(rivals) == {nodes("a0.h0", other, "m0") for other in ("a0.h1", "a0.h3")}
    control = measure_random_controls(bystander, with_bystander, [], 0).layer
    assert (control.n, control.n_possible, control.as_good) == (5, 5, 2)
    assert control.p == pytest.approx(3 / 6)


def test_each_of_b_and_c_alone_disqualifies() -> None:
    """The alternatives are as faithful; they differ when knocked out, or with a node out or in."""
    circuit = nodes("a0.h0")
    other = nodes("a0.h1")
    everything = nodes("a0.h0", "a0.h1", "a0.h2", "a0.h3")

    def with_changes(changes: dict[NodeSet, float]) -> list[NodeSet]:
        def value(kept: NodeSet) -> float:
            if kept in changes:
                return changes[kept]
            return (
                float(bool(kept & (circuit | other)))
                if kept not in (everything - circuit, everything - other)
                else 0.0
            )

        return find_rivals(SyntheticFaithfulness(everything, value), circuit, [], 0, by_layer=True)[
            0
        ]

    assert with_changes({}) == [other]
    assert with_changes({everything - other: 0.3}) == []  # (b), and (c) inside
    assert with_changes({everything - other: -0.21}) == []
    assert with_changes({everything - other: 0.2}) == [other]
    assert with_changes({other | {head(0, 2)}: 1.11}) == []  # (c) outside
    assert with_changes({other: 1.0002}) == []  # less faithful by more than the tie
    assert with_changes({other: 1.00005}) == [other]


def test_both_controls_of_a_hand_built_circuit(load_case: Callable[[str], Any]) -> None:
    """No set of the circuit's shape is as good, counted from the full table of f."""
    case = load_case("induction")
    f = case.f("resample")
    oracle = case.oracle("resample")
    circuit = nodes(*load_truth("induction").nodes)
    controls = measure_random_controls(f, circuit, sorted(f.everything), 0)
    distance = abs(1 - oracle.f1(circuit))
    for control, by_layer in ((controls.size, False), (controls.layer, True)):
        expected = matched_sets(f.everything, circuit, by_layer=by_layer)
        assert (control.n, control.n_possible) == (len(expected), len(expected))
        close = [
            candidate for candidate in expected if abs(1 - oracle.f1(candidate)) <= distance + 1e-4
        ]
        assert control.as_good == len(close) == 0
        assert control.p == pytest.approx(1 / (1 + len(expected)))


def test_a_distractor_beside_the_circuit_has_rivals(load_case: Callable[[str], Any]) -> None:
    """By the full definition, over every set of the same shape, from the weights."""
    case = load_case("induction")
    f = case.f("mean")
    oracle = case.oracle("mean")
    circuit = nodes(*load_truth("induction").nodes) | nodes("a1.h3")
    expected = rivals_by_definition(oracle, f.everything, circuit, by_layer=False)
    rivals, _ = find_rivals(f, circuit, sorted(f.everything), 0, by_layer=False)
    assert set(rivals) == set(expected)


def test_no_alternative_is_null() -> None:
    f = SyntheticFaithfulness(universe(2, 2), lambda kept: len(kept) / 6)
    for circuit in (f.everything, frozenset()):
        controls = measure_random_controls(f, circuit, [], 0)
        assert (controls.size, controls.layer) == (None, None)
    heads = frozenset(
        node for node in f.everything if node.kind == "attention_head" and node.layer == 0
    )
    controls = measure_random_controls(f, heads, [], 0)
    assert controls.layer is None
    assert (controls.size.n, controls.size.n_possible) == (5, 5)
    assert (
        measure_random_controls(
            SyntheticFaithfulness(f.everything, len, is_defined=False), heads, [], 0
        )
        is None
    )


@pytest.mark.parametrize(
    ("n", "as_good", "holds"),
    [
        (18, 0, True),
        (18, 1, False),
        (1, 0, True),
        (19, 0, True),
        (19, 1, False),
        (39, 1, True),
        (39, 2, False),
        (200, 9, True),
        (200, 10, False),
    ],
)
def test_below_19_none_may_be_as_good_from_19_on_p_decides(
    n: int, as_good: int, holds: bool
) -> None:
    assert (
        beats_alternatives(Control(n=n, n_possible=n, as_good=as_good, p=(1 + as_good) / (1 + n)))
        is holds
    )


def test_only_the_first_8_16_and_32_pairs_are_asked_for() -> None:
    pairs_asked_for = []

    class PairCountSpy(SyntheticFaithfulness):
        def __call__(self, sets: Any, label: str = "", pairs: int | None = None) -> Any:
            pairs_asked_for.append(pairs)
            return super().__call__(sets, label, pairs)

    for n_pairs, expected in ((100, {8, 16, 32}), (10, {8, 10})):
        pairs_asked_for.clear()
        measure_random_controls(
            PairCountSpy(universe(1, 3), two_answers, n_pairs=n_pairs), nodes("a0.h0", "m0"), [], 0
        )
        assert set(pairs_asked_for) == expected


def test_enumeration_is_not_repeated_for_sets_of_one_shape() -> None:
    """All alternatives of one layer-matched shape, counted by hand: C(4,1)·C(4,2) − 1."""
    members = [head(layer, h) for layer in range(2) for h in range(4)]
    circuit = nodes("a0.h1", "a1.h0", "a1.h3")
    f = SyntheticFaithfulness(members, lambda kept: 0.0)
    _, control = find_rivals(f, circuit, [], 0, by_layer=True)
    assert control is not None
    assert control.n == control.n_possible == 4 * 6 - 1
    by_hand = {
        frozenset({head(0, a), head(1, b), head(1, c)})
        for a in range(4)
        for b, c in itertools.combinations(range(4), 2)
    }
    assert by_hand <= f.measured.keys()


@pytest.mark.parametrize(
    ("places", "n", "as_good", "holds"),
    [
        ([], 39, 0, True),
        ([50], 39, 0, True),
        ([10, 100], 200, 2, True),
        ([38], 200, 1, True),
        (range(12), 39, 10, False),
        (range(30, 60), 62, 10, False),
        (range(30, 39), 200, 9, True),
    ],
)
def test_the_sample_ends_when_nothing_is_as_good_or_too_many_are(
    places: Sequence[int], n: int, as_good: int, holds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`places` says which of the 200 drawn sets are as good; 10 of them are too many."""
    members = [head(0, h) for h in range(250)]
    circuit = frozenset(members[:1])
    drawn, possible = draw_alternatives([(members, 1)], circuit, 0)
    good = {circuit, *(drawn[place] for place in places)}
    monkeypatch.setattr(alternatives, "_meets_b_and_c", lambda *arguments: True)
    f = SyntheticFaithfulness(members, lambda kept: float(kept in good))
    rivals, control = find_rivals(f, circuit, members, 0, by_layer=False)
    assert control == Control(n=n, n_possible=possible, as_good=as_good, p=(1 + as_good) / (1 + n))
    assert beats_alternatives(control) is holds
    assert len(rivals) == as_good


def test_version_1_measures_every_alternative() -> None:
    members = [head(0, h) for h in range(25)]
    circuit = frozenset(members[:3])
    f = SyntheticFaithfulness(members, lambda kept: float(kept == circuit))
    _, control = find_rivals(f, circuit, members, 0, by_layer=False, rules=1)
    assert control == Control(n=200, n_possible=math.comb(25, 3) - 1, as_good=0, p=1 / 201)


def test_an_alternative_that_is_far_off_on_8_pairs_is_not_measured_further() -> None:
    members = [head(0, h) for h in range(25)]
    circuit = frozenset(members[:3])
    asked_for: dict[int | None, set[NodeSet]] = {}

    class SetSpy(SyntheticFaithfulness):
        def __call__(self, sets: Any, label: str = "", pairs: int | None = None) -> Any:
            asked_for.setdefault(pairs, set()).update(sets)
            return super().__call__(sets, label, pairs)

    near = {frozenset({members[3], members[4], v}) for v in members[5:]}
    f = SetSpy(members, lambda kept: 1.0 if kept == circuit else 0.6 * (kept in near), n_pairs=40)
    find_rivals(f, circuit, members, 0, by_layer=False)
    assert len(asked_for[8]) == 39
    assert asked_for[32] <= near | {circuit}


@pytest.mark.parametrize(
    ("gap", "is_measured_on_all", "is_complete"),
    [(0.03, False, True), (0.05, True, True), (0.15, True, False)],
)
def test_only_gaps_near_their_limit_are_measured_on_all_pairs(
    gap: float, is_measured_on_all: bool, is_complete: bool
) -> None:
    """Node v changes f of the alternative by `gap`; the limit is 0.1, less 0.06."""
    members = [head(0, h) for h in range(3)]
    alternative, _, v = members
    asked_for: dict[int | None, set[NodeSet]] = {}

    class Spy(SyntheticFaithfulness):
        def __call__(self, sets: Any, label: str = "", pairs: int | None = None) -> Any:
            asked_for.setdefault(pairs, set()).update(sets)
            return super().__call__(sets, label, pairs)

    f = Spy(members, lambda kept: (alternative in kept) + gap * (v in kept), n_pairs=40)
    meets = alternatives._meets_b_and_c(f, frozenset({alternative}), members, 0, 32)
    assert meets is is_complete
    assert (frozenset({alternative, v}) in asked_for[32]) is is_measured_on_all
