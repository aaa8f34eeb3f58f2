"""Splits: whole templates if there are enough, halves otherwise, and no pair beside its reverse."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.tasks.split import split_pairs
from discovery.tasks.task import EncodedPair


def pairs_of(*sizes: int) -> list[EncodedPair]:
    """Return different pairs, as many of each template as `sizes` says."""
    return [
        EncodedPair(
            clean=(n, template),
            corrupted=(n + 500, template),
            answer=(1,),
            wrong=(2,),
            template=f"t{template}",
        )
        for template, size in enumerate(sizes)
        for n in range(size)
    ]


def reverse(pair: EncodedPair) -> EncodedPair:
    return EncodedPair(
        clean=pair.corrupted,
        corrupted=pair.clean,
        answer=pair.wrong,
        wrong=pair.answer,
        template=pair.template,
    )


def held_templates(pairs: list[EncodedPair], names: tuple[str | None, ...]) -> set[str]:
    return {pair.template for pair, name in zip(pairs, names, strict=True) if name == "heldout"}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 5))
def test_whole_templates_of_40_to_60_percent_are_held_out_if_they_exist(sizes, seed):
    pairs = pairs_of(*sizes)
    names, method = split_pairs(pairs, seed)
    heldout = names.count("heldout")
    total = len(pairs)
    possible = len(sizes) >= 3 and any(
        2 * total <= 5 * sum(subset) <= 3 * total
        for count in range(len(sizes))
        for subset in combinations(sizes, count)
    )
    assert method.startswith(
        "whole templates held out" if possible else "50/50 within each template"
    )
    if possible:
        assert 2 * total <= 5 * heldout <= 3 * total
        discovery_templates = {
            pair.template for pair, name in zip(pairs, names, strict=True) if name == "discovery"
        }
        assert not discovery_templates & held_templates(pairs, names)
    else:
        assert total // 2 - 1 <= heldout <= (total + 1) // 2
        for template, size in enumerate(sizes):
            template_names = [
                name
                for pair, name in zip(pairs, names, strict=True)
                if pair.template == f"t{template}"
            ]
            assert template_names.count("heldout") in (size // 2, (size + 1) // 2)


def test_a_greedy_choice_that_gets_stuck_is_corrected():
    """15 and 15 make 30, and 35 more is too much. Only a look at all sums finds 15 + 35."""
    pairs = pairs_of(15, 15, 35, 35)
    for seed in range(30):
        names, method = split_pairs(pairs, seed)
        assert method.startswith("whole templates"), seed
        assert names.count("heldout") == 50


def test_the_method_says_why_no_whole_templates_are_held_out():
    assert (
        "(1 template, and whole ones are held out from three on)" in split_pairs(pairs_of(4), 0)[1]
    )
    assert "(2 templates, and whole ones" in split_pairs(pairs_of(4, 4), 0)[1]
    assert (
        "no choice of whole templates holds 40-60% of the pairs"
        in split_pairs(pairs_of(1, 1, 8), 0)[1]
    )


@pytest.mark.parametrize("sizes", [(9, 9, 9, 9), (7, 8)])
def test_the_seed_decides(sizes):
    pairs = pairs_of(*sizes)
    drawn = {split_pairs(pairs, seed)[0] for seed in range(8)}
    assert len(drawn) > 1
    assert split_pairs(pairs, 3) == split_pairs(pairs, 3)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_a_pair_and_its_reverse_are_one(sizes, seed, random):
    pairs = pairs_of(*sizes)
    mixed = [*pairs, *(reverse(pair) for pair in pairs if random.random() < 0.5)]
    random.shuffle(mixed)
    names, _ = split_pairs(mixed, seed)
    sides = {
        name: {pair.key for pair, split in zip(mixed, names, strict=True) if split == name}
        for name in ("discovery", "heldout")
    }
    assert not sides["discovery"] & sides["heldout"]
    assert sum(name is not None for name in names) == len(pairs)
    used = [pair.key for pair, name in zip(mixed, names, strict=True) if name is not None]
    assert len(used) == len(set(used))


def test_pairs_and_their_reverses_are_used_in_turn() -> None:
    """Otherwise all answers could be the same, and a constant answer as accurate as the model."""
    pairs = [side for pair in pairs_of(6, 5, 4) for side in (pair, reverse(pair))]
    names, _ = split_pairs(pairs, 0)
    for template in range(3):
        answers = [
            pair.answer
            for pair, name in zip(pairs, names, strict=True)
            if name is not None and pair.template == f"t{template}"
        ]
        assert abs(answers.count((1,)) - answers.count((2,))) <= 1
    repeated = [pair for pair in pairs_of(3) for _ in range(2)]
    assert [name is None for name in split_pairs(repeated, 0)[0]] == [False, True] * 3


def test_a_single_pair_selects():
    assert split_pairs(pairs_of(1), 0)[0] == ("discovery",)


def test_the_method_names_a_few_templates() -> None:
    _, method = split_pairs(pairs_of(*[1] * 40), 0)
    templates = method.removeprefix("whole templates held out: ")
    assert templates.endswith(" and 8 more")
    assert templates.count(",") == 7


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 20), st.integers(0, 5))
def test_96_pairs_are_enough_whatever_their_templates(sizes, more, seed):
    """At least 48 are held out, and at least 40% of the pairs remain to find a circuit with."""
    short = max(0, 96 + more - sum(sizes))
    pairs = pairs_of(*sizes, short) if short else pairs_of(*sizes)
    names, _ = split_pairs(pairs, seed)
    assert names.count("heldout") >= min(48, len(pairs) // 2)
    assert names.count("discovery") >= 2 * len(pairs) // 5


def test_96_pairs_of_equal_templates_are_halved():
    """16 templates of six pairs: eight of them, and not the seven that hold 40%."""
    for seed in range(5):
        names, _ = split_pairs(pairs_of(*[6] * 16), seed)
        assert (names.count("heldout"), names.count("discovery")) == (48, 48)


def test_larger_tasks_are_split_as_before():
    """240 pairs of 16 templates: the seven of the random order that reach 40%."""
    for seed in range(3):
        names, _ = split_pairs(pairs_of(*[15] * 16), seed)
        assert names.count("heldout") == 105
