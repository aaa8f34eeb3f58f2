"""Reading a grid of effects: the largest cells, normalisation, and alignment by label."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from benchmarks.random_models.tiny_models import as_task, random_pairs
from discovery import load_model, load_task, patch_sweep
from discovery.engine.cost import MeasurementCost
from discovery.methods.patching import Sweep, align_by_label, normalise, top_cells
from discovery.tasks.task import EncodedPair


def sweep_of(values: torch.Tensor, positions: tuple[int | str, ...] = ()) -> Sweep:
    metric = torch.zeros(1)
    return Sweep(
        site="head_out",
        direction="denoising",
        metric="logit_difference",
        values=values,
        per_pair=values.unsqueeze(0),
        metric_clean=metric,
        metric_corrupted=metric,
        positions=positions,
        cost=MeasurementCost(0.0, 0.0),
    )


def test_the_largest_cells_come_first_and_missing_ones_are_left_out() -> None:
    grid = torch.tensor([[0.1, float("nan"), -0.9], [0.5, 0.1, 0.0]])
    cells = top_cells(sweep_of(grid), 4)
    assert [(cell.layer, cell.head, round(cell.value, 3)) for cell in cells] == [
        (0, 2, -0.9),
        (1, 0, 0.5),
        (0, 0, 0.1),
        (1, 1, 0.1),
    ]
    assert len(top_cells(sweep_of(grid), 100)) == 5
    labelled = top_cells(sweep_of(grid, ("a", "b", "c")), 1)[0]
    assert (labelled.head, labelled.position) == (None, "c")


def test_the_normalised_value_is_a_ratio_of_means():
    per_pair = torch.tensor([[3.0, math.nan], [1.0, 5.0]])
    clean = torch.tensor([4.0, 10.0])
    corrupted = torch.tensor([0.0, 2.0])
    values, warnings = normalise(per_pair, clean, corrupted, "denoising")
    assert warnings == ()
    # The second column has only one pair.
    torch.testing.assert_close(values, torch.tensor([(2 - 1) / (7 - 1), (5 - 2) / (10 - 2)]))
    values, _ = normalise(per_pair, clean, corrupted, "noising")
    torch.testing.assert_close(values, torch.tensor([(7 - 2) / (7 - 1), (10 - 5) / (10 - 2)]))


def test_values_are_nan_with_a_warning_if_there_is_nothing_to_normalise_by(tiny_models):
    """One pair is the reverse of the other, so that the gaps cancel; the raw metric is there."""
    pair = random_pairs([5])[0]
    reverse = EncodedPair(
        clean=pair.corrupted, corrupted=pair.clean, answer=pair.answer, wrong=pair.wrong
    )
    model = tiny_models.load("native", dtype="float64")
    sweep = patch_sweep(model, as_task([pair, reverse]), "resid_pre")
    assert sweep.values.isnan().all()
    assert not sweep.per_pair.isnan().any()
    assert "below 1e-6" in sweep.warnings[0]
    assert patch_sweep(model, as_task([pair]), "resid_pre").warnings == ()


def test_a_small_gap_is_no_gap():
    for gap, is_too_small in ((0.9e-6, True), (1.1e-6, False)):
        values, warnings = normalise(
            torch.tensor([[0.5]]),
            torch.tensor([gap]).double(),
            torch.zeros(1).double(),
            "denoising",
        )
        assert bool(values.isnan().all()) == bool(warnings) == is_too_small


@pytest.mark.parametrize("site", ["resid_pre", "head_out_by_position"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_labelled_columns_are_the_label_sweeps_and_the_rest_counts_from_the_end(
    tiny_models: Any, site: Any, direction: Any
) -> None:
    model = tiny_models.load("gpt2", dtype="float64")
    task = as_task(random_pairs((6, 4, 7, 5), seed=2, labelled=True))
    by_position = patch_sweep(model, task, site, direction=direction)
    by_label = patch_sweep(model, task, site, direction=direction, by="label")
    aligned = align_by_label(by_position, task)
    assert set(by_label.positions) <= set(aligned.positions)
    assert aligned.values.shape == (*by_position.values.shape[:-1], len(aligned.positions))
    for n, label in enumerate(by_label.positions):
        labelled = by_label.per_pair[..., n]
        column = aligned.per_pair[..., aligned.positions.index(label)]
        exists = ~labelled.isnan() & ~column.isnan()
        assert exists.any()
        torch.testing.assert_close(column[exists], labelled[exists])
    for n, position in enumerate(by_position.positions):
        pairs_without_label = [
            i
            for i, pair in enumerate(task.pairs)
            if position not in {at - len(pair.clean) for at in pair.labels.values()}
        ]
        if position in aligned.positions:
            column = aligned.per_pair[..., aligned.positions.index(position)]
            torch.testing.assert_close(
                column[pairs_without_label],
                by_position.per_pair[pairs_without_label][..., n],
                equal_nan=True,
            )
    # Each token is in exactly one column.
    assert (~aligned.per_pair.isnan()).sum() == (~by_position.per_pair.isnan()).sum()


def test_prompts_of_one_length_and_screened_sweeps_stay_as_they_are(tiny_models: Any) -> None:
    model = tiny_models.load("gpt2")
    one_length = as_task(random_pairs((5, 5), labelled=True))
    sweep = patch_sweep(model, one_length, "resid_pre")
    assert align_by_label(sweep, one_length) is sweep
    mixed = as_task(random_pairs((5, 4), labelled=True))
    screened = patch_sweep(model, mixed, "resid_pre", screen=True)
    assert align_by_label(screened, mixed) is screened


@pytest.mark.parametrize("name", ["ioi", "agreement"])
def test_no_layer_of_a_built_in_behaviour_passes_through_a_position_without_a_column(
    name: str,
) -> None:
    """Labels alone once showed 0.7% of what passes through the unlabelled token before the last."""
    model = load_model("bundled")
    task = load_task(name, model, pairs=32)
    by_position = patch_sweep(model, task, "resid_pre", direction="noising")
    aligned = align_by_label(by_position, task)
    largest = aligned.values.nan_to_num().amax(1)
    expected = by_position.values.nan_to_num().amax(1)
    assert bool((largest >= 0.9 * expected).all()), (largest, expected)
