"""Edits are checked by hand, and mean ablation against nested loops that follow its definition."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.random_models.tiny_models import random_pairs
from discovery.interventions import (
    MIN_REFERENCE_PROMPTS,
    Edit,
    MeanReference,
    add,
    plan_reference,
    replace_with,
    scale,
)
from discovery.sites import Site
from discovery.tasks.task import EncodedPair
from tests.oracles.mean_reference import mean_by_definition

SITE = Site("resid_pre", 0)
ACTIVATION = torch.arange(12.0).reshape(2, 3, 2)  # [row pos d_model]
WHERE = torch.tensor([[True, False, False], [False, False, True]])


def test_replace_add_and_scale_everywhere():
    value = torch.full((2, 3, 2), 5.0)
    torch.testing.assert_close(replace_with(SITE, value).apply(ACTIVATION), value)
    torch.testing.assert_close(add(SITE, value).apply(ACTIVATION), ACTIVATION + 5)
    torch.testing.assert_close(scale(SITE, 3).apply(ACTIVATION), ACTIVATION * 3)
    torch.testing.assert_close(scale(SITE, 0).apply(ACTIVATION), torch.zeros(2, 3, 2))


@pytest.mark.parametrize(
    "make",
    [
        lambda where: replace_with(SITE, torch.full((2,), -1.0), where),
        lambda where: scale(SITE, -2, where),
    ],
)
def test_an_edit_changes_only_what_it_selects(make):
    changed = make(WHERE).apply(ACTIVATION)
    assert torch.equal(
        changed != ACTIVATION, WHERE.unsqueeze(-1).expand_as(ACTIVATION) & (changed != ACTIVATION)
    )
    assert not torch.equal(changed[0, 0], ACTIVATION[0, 0])
    assert not torch.equal(changed[1, 2], ACTIVATION[1, 2])


@given(st.integers(0, 10**6))
def test_an_edit_at_one_position_is_the_whole_edit_there(seed):
    """Values and places have every shape that broadcasts; values may be given by index."""
    rng = torch.Generator().manual_seed(seed)
    full = (3, 5, 2, 4) if seed % 2 else (3, 5, 4)
    shape = [size if torch.rand((), generator=rng) < 0.6 else 1 for size in full]
    drop = int(torch.randint(0, len(full), (), generator=rng))
    value = torch.randn(shape[drop:], generator=rng)
    where = (
        torch.rand(
            [size if torch.rand((), generator=rng) < 0.6 else 1 for size in full[:-1]],
            generator=rng,
        )
        < 0.5
    )
    index = torch.tensor([2, 0, 2]) if value.ndim == len(full) and len(value) == 3 else None
    edit = Edit(
        SITE, value, where if seed % 3 else None, ("replace", "add", "scale")[seed % 5 % 3], index
    )
    activation = torch.randn(full, generator=rng)
    position = torch.tensor([4, 0, 2])
    rows = torch.arange(3)
    restricted = edit.at_position(position, len(full))
    torch.testing.assert_close(
        restricted.apply(activation[rows, position].unsqueeze(1)),
        edit.apply(activation)[rows, position].unsqueeze(1),
        atol=0,
        rtol=0,
    )


def test_the_activation_itself_is_left_alone():
    before = ACTIVATION.clone()
    add(SITE, torch.ones(2), WHERE).apply(ACTIVATION)
    assert torch.equal(ACTIVATION, before)


def test_heads_are_selected_by_their_axis():
    z = torch.zeros(2, 3, 4, 2)  # [row pos head d_head]
    where = torch.zeros(2, 3, 4, dtype=torch.bool)
    where[1, 2, 3] = True
    changed = replace_with(Site("z", 0), torch.ones(2, 3, 4, 2), where).apply(z)
    assert changed.sum() == 2
    assert changed[1, 2, 3].tolist() == [1, 1]
    everywhere = replace_with(
        Site("z", 0), torch.ones(1), torch.tensor([False, True, False, False]).reshape(1, 1, 4)
    ).apply(z)
    assert torch.equal(everywhere[:, :, 1], torch.ones(2, 3, 2))
    assert everywhere.sum() == 12


def test_an_index_gathers_each_rows_pair():
    values = torch.stack([torch.full((3, 2), float(pair)) for pair in range(5)])
    changed = Edit(SITE, values, index=torch.tensor([4, 2])).apply(ACTIVATION)
    assert changed[0].unique().tolist() == [4]
    assert changed[1].unique().tolist() == [2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_value_takes_the_activations_dtype(dtype):
    narrow = ACTIVATION.to(dtype)
    for edit in (
        replace_with(SITE, torch.ones(2)),
        add(SITE, torch.ones(2), WHERE),
        scale(SITE, 2, WHERE),
    ):
        assert edit.apply(narrow).dtype == dtype


def values_of(pairs: Sequence[EncodedPair], seed: int = 0) -> list[torch.Tensor]:
    """A random activation [pos head d_head] for each pair."""
    rng = torch.Generator().manual_seed(seed)
    return [
        torch.randn(len(pair.clean), 2, 3, generator=rng, dtype=torch.float64) for pair in pairs
    ]


def padded(values: list[torch.Tensor]) -> torch.Tensor:
    """Return [pair pos head d_head], right-padded with numbers that must not be read."""
    width = max(len(value) for value in values)
    out = torch.full((len(values), width, 2, 3), 1e6, dtype=torch.float64)
    for row, value in enumerate(values):
        out[row, : len(value)] = value
    return out


def check_means(pairs: Sequence[EncodedPair], cuts: tuple[int, ...] = ()) -> str:
    """Compare `MeanReference`, filled block by block, with the definition; return the alignment."""
    values = values_of(pairs)
    plan = plan_reference(pairs)
    bounds = [0, *cuts, len(pairs)]
    blocks = [
        (first, padded(values[first:last])) for first, last in pairwise(bounds) if last > first
    ]
    mean = MeanReference(plan)
    for first, block in blocks:
        mean.add(first, block)
    alignments = set()
    sizes = []
    for first, block in blocks:
        got = mean.values(first, block)
        assert got.shape == block.shape
        for row in range(len(block)):
            for position in range(len(pairs[first + row].clean)):
                expected, alignment, size = mean_by_definition(pairs, values, first + row, position)
                torch.testing.assert_close(got[row, position], expected)
                alignments.add(alignment)
                sizes.append(size)
    assert plan.alignment == "+".join(sorted(alignments))
    assert plan.size == min(sizes)
    return plan.alignment


def test_nine_pairs_of_one_shape_are_averaged_by_position():
    assert check_means(random_pairs([5] * (MIN_REFERENCE_PROMPTS + 1))) == "position"


def test_eight_are_not_enough():
    assert check_means(random_pairs([5] * MIN_REFERENCE_PROMPTS)) == "all"
    assert check_means(random_pairs([5] * MIN_REFERENCE_PROMPTS, labelled=True)) == "label"


def test_another_template_or_length_is_no_peer():
    assert check_means(random_pairs([5] * 16, templates=2)) == "all"
    assert check_means(random_pairs([5] * 8 + [6] * 8)) == "all"
    assert check_means(random_pairs([5] * 18, templates=2)) == "position"


def test_some_templates_have_enough_and_others_have_not():
    assert check_means(random_pairs([5] * 9 + [4, 6], labelled=True)) == "label+position"
    assert check_means(random_pairs([5] * 9 + [4, 6])) == "all+position"


def test_a_label_of_one_pair_alone_has_no_other_value():
    pairs = random_pairs([5, 6], labelled=True)  # only the first has "middle"
    assert check_means(pairs) == "label"
    assert plan_reference(pairs).size == 0


def test_a_single_pair_is_its_own_mean():
    assert check_means(random_pairs([4])) == "all"


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(2, 4), min_size=1, max_size=24),
    st.integers(1, 2),
    st.booleans(),
    st.lists(st.integers(1, 20), max_size=3),
    st.integers(0, 99),
)
def test_any_lengths_templates_labels_and_blocks(lengths, templates, labelled, cuts, seed):
    check_means(
        random_pairs(lengths, seed, templates=templates, labelled=labelled, changed=1),
        tuple(sorted({min(cut, len(lengths)) for cut in cuts})),
    )


def test_a_mean_before_its_values_is_a_bug():
    with pytest.raises(RuntimeError, match="add every pair"):
        MeanReference(plan_reference(random_pairs([3]))).values(0, torch.zeros(1, 3, 2, 3))
