"""Edits are checked by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from discovery.interventions import (
    Edit,
    add,
    replace_with,
    scale,
)
from discovery.sites import Site

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
        SITE,
        value,
        where if seed % 3 else None,
        operation=("replace", "add", "scale")[seed % 5 % 3],
        index=index,
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
