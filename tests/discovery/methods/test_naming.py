"""Positions by name: labels where tokens have one, places from the end elsewhere, from the same measurements."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from discovery import load_model, load_task
from discovery.methods.naming import named
from discovery.methods.patching import patch_sweep
from tests.discovery.tiny import as_task, random_pairs


@pytest.mark.parametrize("site", ["resid_pre", "head_out_by_position"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_labelled_columns_are_the_label_sweeps_and_the_rest_counts_from_the_end(shelf: Any, site: Any, direction: Any) -> None:
    model, task = shelf.load("gpt2", dtype="float64"), as_task(random_pairs((6, 4, 7, 5), seed=2, labelled=True))
    by_position = patch_sweep(model, task, site, direction=direction)
    by_label = patch_sweep(model, task, site, direction=direction, by="label")
    found = named(by_position, task)
    assert set(by_label.positions) <= set(found.positions)
    assert found.values.shape == (*by_position.values.shape[:-1], len(found.positions))
    for n, label in enumerate(by_label.positions):
        column = found.positions.index(label)
        has = ~by_label.per_pair[..., n].isnan() & ~found.per_pair[..., column].isnan()
        assert has.any()
        torch.testing.assert_close(found.per_pair[..., column][has], by_label.per_pair[..., n][has])
    for n, place in enumerate(by_position.positions):  # each token is in exactly one column
        pairs = [i for i, pair in enumerate(task.pairs) if place not in {at - len(pair.clean) for at in pair.labels.values()}]
        if place in found.positions:
            column = found.positions.index(place)
            torch.testing.assert_close(found.per_pair[pairs][..., column], by_position.per_pair[pairs][..., n], equal_nan=True)
    assert (~found.per_pair.isnan()).sum() == (~by_position.per_pair.isnan()).sum()


def test_prompts_of_one_length_and_screened_sweeps_stay_as_they_are(shelf: Any) -> None:
    model = shelf.load("gpt2")
    same = patch_sweep(model, task := as_task(random_pairs((5, 5), labelled=True)), "resid_pre")
    assert named(same, task) is same
    mixed = as_task(random_pairs((5, 4), labelled=True))
    screened = patch_sweep(model, mixed, "resid_pre", screen=True)
    assert named(screened, mixed) is screened


@pytest.mark.parametrize("name", ["ioi", "agreement"])
def test_no_layer_of_a_built_in_behaviour_passes_through_a_position_without_a_column(name: str) -> None:
    """Seen once: labels alone showed 0.7% of what passes through the unlabelled token before the last."""
    model = load_model("bundled")
    task = load_task(name, model, pairs=32)
    whole = patch_sweep(model, task, "resid_pre", direction="noising")
    found = named(whole, task)
    largest, all_along = found.values.nan_to_num().amax(1), whole.values.nan_to_num().amax(1)
    assert bool((largest >= 0.9 * all_along).all()), (largest, all_along)
