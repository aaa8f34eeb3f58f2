"""Probes of a model: what is planted is found, what is used is told from what is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.random_models.tiny_models import as_task, load_plain_module, random_pairs
from discovery.engine import Engine
from discovery.errors import MeasurementError, TaskError
from discovery.methods.probes import probe
from discovery.methods.probes.classifier import PENALTY_C, split_folds
from discovery.methods.probes.removal import remove_directions
from discovery.sites import Site
from tests.discovery.methods.probes.planted_model import N_TOKENS, Planted, plant_features
from tests.oracles.probes import fit_by_newton, metric_without_direction


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """The model with two planted features."""
    return plant_features(tmp_path_factory.mktemp("planted") / "model")


def test_a_used_feature_is_read_and_its_removal_takes_the_behaviour(planted: Planted) -> None:
    result = probe(planted.model, planted.task, label="answer", layers=[1])
    (cell,) = result.cells
    assert cell.accuracy.mean > 0.9
    assert cell.shuffled < 0.65
    assert cell.selectivity == pytest.approx(cell.accuracy.mean - cell.shuffled)
    assert cell.token <= 0.55  # no token is in two templates
    assert cell.is_readable
    assert result.removal is not None
    assert result.removal.is_used
    # The corrupted prompt has the other answer, so that no preference is half of the difference.
    assert result.removal.effect == pytest.approx(0.5, abs=0.15)
    assert len(result.removal.random) == 20


def test_a_feature_that_nothing_reads_is_read_and_its_removal_changes_nothing(
    planted: Planted,
) -> None:
    result = probe(planted.model, planted.task, label="before:A,B", layers=[1])
    assert result.best.accuracy.mean > 0.9
    assert result.best.is_readable
    assert result.removal is not None
    assert not result.removal.is_used
    assert abs(result.removal.effect or 0.0) < 0.15


def test_a_label_that_says_nothing_is_not_read(planted: Planted) -> None:
    result = probe(planted.model, planted.task, label="before:C,D", removal=False)
    assert [cell.layer for cell in result.cells] == [0, 1]
    assert not any(cell.is_readable for cell in result.cells)
    assert result.removal is None


def test_the_accuracy_is_that_of_plain_fits(planted: Planted) -> None:
    result = probe(planted.model, planted.task, label="before:A,B", layers=[0], removal=False)
    classes = [
        "A before B" if pair.labels["A"] < pair.labels["B"] else "B before A"
        for pair in planted.task.pairs
    ]
    labels = np.array([name == "B before A" for name in classes]).astype(float)
    engine = Engine(planted.model, planted.task)
    (_, block), *_ = engine.blocks()
    x = block.activation("clean", Site("resid_pre", 0))[:, -1].double().numpy()
    x = (x - x.mean(0)) / np.sqrt(((x - x.mean(0)) ** 2).mean())
    right = np.zeros(N_TOKENS, dtype=bool)
    for train, test in split_folds(classes, [pair.template for pair in planted.task.pairs], 0):
        weights, intercept = fit_by_newton(x[train], labels[train], PENALTY_C)
        right[test] = (x[test] @ weights + intercept > 0) == (labels[test] == 1)
    assert result.cells[0].accuracy.mean == pytest.approx(right.mean(), abs=1 / N_TOKENS)
    assert result.cells[0].n == N_TOKENS


@pytest.mark.parametrize("backend", ["transformerlens", "nnsight"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "neox"])
def test_removal_equals_a_hook_on_the_module(tiny_models, name: str, backend: str) -> None:
    model = tiny_models.load(name, backend)
    module = load_plain_module(tiny_models.path(name))
    task = as_task(random_pairs([6, 4, 7], seed=3))
    generator = torch.Generator().manual_seed(0)
    units = torch.randn(2, model.info.d_model, generator=generator)
    units = units / units.norm(dim=1, keepdim=True)
    mean = torch.randn(model.info.d_model, generator=generator)
    places = [1, None, 4]
    reads = units.clone()
    reads[1] = units[0]  # moved along the second by what lies along the first
    removed = remove_directions(
        Engine(model, task),
        Site("resid_pre", 1),
        places,
        units.numpy(),
        reads.numpy(),
        mean.numpy(),
    )
    assert removed[:, 1].isnan().all()
    for row, (unit, read) in enumerate(zip(units, reads, strict=True)):
        for column in (0, 2):
            pair = task.pairs[column]
            place = places[column]
            assert place is not None
            expected = metric_without_direction(
                module,
                pair.clean,
                layer=1,
                position=place,
                vectors=(unit, read),
                mean=mean,
                answer=pair.answer[0],
                wrong=pair.wrong[0],
            )
            assert float(removed[row, column]) == pytest.approx(expected, abs=2e-4)


def test_labelled_prompts_from_a_file(planted: Planted, tmp_path: Path) -> None:
    lines = [
        {
            "prompt": list(pair.clean),
            "label": "yes" if pair.labels["A"] == 0 else "no",
            "template": pair.template,
        }
        for pair in planted.task.pairs
    ]
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = probe(planted.model, examples=path, layers=[0])
    assert result.task == "examples"
    assert result.classes == {"no": N_TOKENS // 2, "yes": N_TOKENS // 2}
    assert result.best.accuracy.mean > 0.9
    assert result.removal is None
    assert "labelled prompts have no answers" in result.warnings[-1]
    inline = probe(planted.model, examples=lines, layers=[0])
    assert inline.cells == result.cells


def test_sides_of_one_template_are_split_by_pair(planted: Planted) -> None:
    """Both prompts of a pair share what the pair is about, so they stay on one side."""
    pairs = tuple(replace(pair, template="") for pair in planted.task.pairs)
    task = replace(planted.task, pairs=pairs)
    result = probe(planted.model, task, label="side", layers=[0], removal=False)
    assert result.n == 2 * N_TOKENS
    assert any("one template" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "takes a task or labelled prompts, and neither was given"),
        ({"examples": []}, "There are no labelled prompts"),
        ({"examples": [{"prompt": [1, 2], "label": "a", "x": 1}]}, "prompt 1: unknown field 'x'"),
        ({"examples": [{"prompt": 5, "label": "a"}]}, "prompt 1: prompt is 5"),
        ({"examples": [{"prompt": [1, 2], "label": "a"}] * 9}, "has 1 classes"),
    ],
)
def test_what_cannot_be_probed_is_refused(planted: Planted, arguments, message: str) -> None:
    with pytest.raises((MeasurementError, TaskError), match=message):
        probe(planted.model, **arguments)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("colour", "label 'colour' is not known"),
        ("token:Z", "names the position 'Z', which a pair lacks"),
        ("before:A", "label 'before:A' is not known"),
    ],
)
def test_an_unknown_label_is_refused(planted: Planted, label: str, message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        probe(planted.model, planted.task, label=label)
