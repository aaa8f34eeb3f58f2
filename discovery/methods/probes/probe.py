"""`probe`: can a label be read from an activation, at which layer, and does the model use it?

    from discovery import load_model, probe
    model = load_model("bundled")
    result = probe(model, "ioi", label="before:IO,S1", positions=["end"])
    result.best.accuracy, result.best.selectivity, result.removal

That a label can be read does not mean that the model uses it. `removal` asks that: it takes the
probe's direction out of the activation and compares with random directions that change as much.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import torch
from scipy.stats import binomtest

from discovery.backends.base import Backend
from discovery.engine import Engine, Meter
from discovery.engine.cost import CostTimer, MeasurementCost
from discovery.errors import MeasurementError, MemoryLimitError, require_choice
from discovery.methods.arguments import locate_positions, require_counts
from discovery.methods.probes.classifier import (
    Folds,
    draw_controls,
    fit_direction,
    guess_from_tokens,
    guess_majority,
    predict,
    reduce_span,
    shuffle_labels,
    split_folds,
    tested_examples,
)
from discovery.methods.probes.examples import (
    Examples,
    ExampleSource,
    examples_of_task,
    read_examples,
)
from discovery.methods.probes.removal import (
    CONTROL_DIRECTIONS,
    DirectionRemoval,
    remove_directions,
    summarise_removal,
)
from discovery.methods.statistics import Interval, Resamples, holm, interval_of_mean
from discovery.methods.subject import TaskLike
from discovery.progress import ProgressCallback
from discovery.sites import MetricName, Site
from discovery.tasks.task import Task

ProbeSite = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]

SIGNIFICANCE = 0.05
MAX_REMOVAL_PAIRS = 48
"""The pairs on which a direction is removed. Each costs a pass for each of 21 directions."""

CAUTION = (
    "A probe shows that a label can be read at a place, not that the model uses it: only the "
    "removal of its direction speaks of use."
)


@dataclass(frozen=True, kw_only=True)
class ProbeCell:
    """How well a probe reads the label at one layer and position.

    All shares are over the same test examples, whose templates the probe was not trained on.

    Attributes:
        layer: the layer.
        position: the position, as it was asked for.
        n: the number of test examples.
        accuracy: the share that the probe gets right, with its 95% interval.
        shuffled: the mean share with shuffled labels.
        selectivity: accuracy − shuffled.
        token: the share that the token at the position gives away.
        majority: the share of the most frequent class.
        p: a one-sided binomial p-value against the largest of the last three, corrected over all
            cells (Holm).
    """

    layer: int
    position: int | str
    n: int
    accuracy: Interval
    shuffled: float
    selectivity: float
    token: float
    majority: float
    p: float

    @property
    def is_readable(self) -> bool:
        """Whether the label can be read beyond shuffled labels, the token and the largest class."""
        return self.p <= SIGNIFICANCE


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Where a label can be read.

    Attributes:
        task: the name of the task or of the file.
        label: what was read.
        site: the activation.
        n: the number of examples.
        classes: the classes with their numbers of examples.
        positions: the positions.
        cells: layer by layer, then position by position.
        removal: what is lost without the probe's direction at the best cell; None if it was not
            asked for or is not possible, and a warning then says why.
        warnings: what to know before the numbers are read.
        cost: the work and the time that it took.
    """

    task: str
    label: str
    site: ProbeSite
    n: int
    classes: dict[str, int]
    positions: tuple[int | str, ...]
    cells: tuple[ProbeCell, ...]
    removal: DirectionRemoval | None
    warnings: tuple[str, ...]
    cost: MeasurementCost

    @property
    def best(self) -> ProbeCell:
        """The cell with the highest accuracy; of equals the earliest."""
        return max(self.cells, key=lambda cell: cell.accuracy.mean)


@dataclass(frozen=True, kw_only=True)
class _ExampleActivations:
    """The activations of all examples.

    Attributes:
        places: where each example has each position; None if it lacks it.
        by_layer: for each layer [example position d_model]; 0 where an example lacks the position.
    """

    places: tuple[tuple[int | None, ...], ...]
    by_layer: dict[int, np.ndarray] = field(repr=False)

    def examples_with(self, column: int) -> list[int]:
        """Return the examples that have a position."""
        return [number for number, row in enumerate(self.places) if row[column] is not None]


def probe(
    model: Backend,
    task: TaskLike | None = None,
    *,
    examples: ExampleSource | None = None,
    label: str = "side",
    site: ProbeSite = "resid_pre",
    layers: Sequence[int] | None = None,
    positions: Sequence[int | str] = (-1,),
    removal: bool = True,
    shuffles: int = 5,
    pairs: int | None = None,
    metric: MetricName | None = None,
    seed: int = 0,
    memory: int | None = None,
    progress: ProgressCallback | None = None,
) -> ProbeResult:
    """Train a linear probe at each layer and position, with controls.

    Args:
        task: a task, whose prompts are labelled by `label`.
        examples: labelled prompts, or a file of them; give either this or a task.
        label: side (clean or corrupted), answer, token:NAME or before:A,B (see `examples`).
        site: resid_pre, resid_mid, resid_post, attn_out or mlp_out.
        layers: the layers; None means all.
        positions: positions that count from 0 or (negative) from the end, or labels of the task.
        removal: whether to remove the direction of the best probe, if there are two classes and a
            task.
        shuffles: how many times the labels are shuffled for the control.
        pairs: how many pairs of a task are used; None means its default.
        metric: what removal is measured by; the task's own by default.
        memory: bytes that caches and batches may take; 60% of the free memory by default.

    Raises:
        MeasurementError: if the arguments do not fit together, or if the label has too few examples
            of a class.
        TaskError: if a line of a file is not a labelled prompt.
        MemoryLimitError: if the memory does not hold the activations.
    """
    began = time.monotonic()
    require_counts(shuffles=(shuffles, 1))
    require_choice("site", site, get_args(ProbeSite))
    labelled = _load_examples(model, task, examples, label, seed, pairs)
    chosen_layers = _require_layers(model, layers, site)
    meter = Meter(progress=progress)
    engine = Engine(model, labelled.task, memory=memory, meter=meter)
    timer = CostTimer(meter, began)
    readings = _read(engine, site, chosen_layers, tuple(positions))
    cells, warnings = _test_cells(
        labelled, readings, chosen_layers, tuple(positions), shuffles, seed
    )
    result = ProbeResult(
        task=labelled.task.name,
        label=labelled.label,
        site=site,
        n=len(labelled.classes),
        classes={name: labelled.classes.count(name) for name in labelled.names},
        positions=tuple(positions),
        cells=cells,
        removal=None,
        warnings=(CAUTION, *labelled.warnings, *warnings),
        cost=timer.cost,
    )
    if not removal:
        return result
    reason = _why_not_removed(labelled)
    if reason:
        return replace(result, warnings=(*result.warnings, reason))
    outcome = _remove(labelled, readings, result, engine, metric, seed)
    if outcome is None:
        reason = "No direction was removed: too few pairs are left to fit it and to measure it."
        return replace(result, warnings=(*result.warnings, reason))
    return replace(result, removal=outcome, cost=timer.cost)


def _load_examples(
    model: Backend,
    task: TaskLike | None,
    examples: ExampleSource | None,
    label: str,
    seed: int,
    pairs: int | None,
) -> Examples:
    if (task is None) == (examples is None):
        given = "neither" if task is None else "both"
        raise MeasurementError(
            f"A probe takes a task or labelled prompts, and {given} was given.",
            "Give one of task and examples.",
        )
    if examples is not None:
        return read_examples(model, examples)
    assert task is not None
    return examples_of_task(model, task, label, seed, pairs)


def _require_layers(
    model: Backend, layers: Sequence[int] | None, site: ProbeSite
) -> tuple[int, ...]:
    chosen = tuple(range(model.info.n_layers) if layers is None else dict.fromkeys(layers))
    if not chosen:
        raise MeasurementError("layers is empty.", "Name layers, or leave it out for all.")
    for layer in chosen:
        model.require_site(Site(site, layer))
    return chosen


def _read(
    engine: Engine, site: ProbeSite, layers: tuple[int, ...], positions: tuple[int | str, ...]
) -> _ExampleActivations:
    """Read the activations of all examples at the positions.

    Raises:
        MemoryLimitError: if the memory does not hold them.
    """
    places = locate_positions(engine.task, positions)
    d_model = engine.backend.info.d_model
    needed = len(engine) * len(layers) * len(positions) * d_model * 4
    if needed > engine.memory:
        raise MemoryLimitError(
            f"The activations take {needed:,} bytes, and {engine.memory:,} are allowed.",
            "Name fewer layers or positions, use fewer pairs, or raise the memory limit.",
        )
    shape = (len(engine), len(positions), d_model)
    by_layer = {layer: np.zeros(shape, dtype=np.float32) for layer in layers}
    for first, block in engine.blocks():
        own = places[first : first + len(block.prompts)]
        where = torch.tensor([[0 if at is None else at for at in row] for row in own])
        rows = torch.arange(len(own))[:, None]
        for layer in layers:
            activation = block.activation("clean", Site(site, layer))
            values = activation[rows.to(activation.device), where.to(activation.device)]
            by_layer[layer][first : first + len(own)] = values.float().cpu().numpy()
    return _ExampleActivations(places=places, by_layer=by_layer)


def _test_cells(
    labelled: Examples,
    readings: _ExampleActivations,
    layers: tuple[int, ...],
    positions: tuple[int | str, ...],
    shuffles: int,
    seed: int,
) -> tuple[tuple[ProbeCell, ...], tuple[str, ...]]:
    """Test a probe in every cell."""
    cells: list[ProbeCell] = []
    warnings: list[str] = []
    for column, position in enumerate(positions):
        members = readings.examples_with(column)
        part = _take_examples(labelled, members)
        if set(part.classes) != set(labelled.classes):
            raise MeasurementError(
                f"The examples that have the position {position!r} lack a class.",
                "Name a position that examples of every class have.",
            )
        groups = [labelled.groups[number] for number in members]
        folds = split_folds(part.classes, groups, seed)
        if not folds:
            raise MeasurementError(
                f"The label {labelled.label!r} is the same throughout all templates but one.",
                "Give examples in which a template has several classes.",
            )
        if len(members) < len(labelled.classes):
            warnings.append(
                f"{len(members)} of {len(labelled.classes)} examples have position {position!r}."
            )
        tokens = [
            labelled.task.pairs[number].clean[place]
            for number in members
            if (place := readings.places[number][column]) is not None
        ]
        tester = _CellTester(part, folds, tokens, shuffles, seed)
        for layer in layers:
            cells.append(tester.test(layer, position, readings.by_layer[layer][members, column]))
    corrected = holm([cell.p for cell in cells])
    cells = [replace(cell, p=p) for cell, p in zip(cells, corrected, strict=True)]
    return tuple(sorted(cells, key=lambda cell: cell.layer)), tuple(warnings)


class _CellTester:
    """Tests probes at one position, layer by layer, with the same folds and controls."""

    def __init__(
        self,
        examples: Examples,
        folds: Folds,
        tokens: Sequence[int],
        shuffles: int,
        seed: int,
    ) -> None:
        templates = examples.templates
        self._examples = examples
        self._folds = folds
        self._tested = tested_examples(folds, len(examples.classes))
        self._shuffled = [
            shuffle_labels(examples.classes, templates, seed * shuffles + number)
            for number in range(shuffles)
        ]
        self._token = self._share(guess_from_tokens(tokens, examples.classes, folds))
        self._majority = self._share(guess_majority(examples.classes, folds))
        tested = [number for number, is_tested in enumerate(self._tested) if is_tested]
        self._resamples = Resamples.of(_take_examples(examples, tested).task)

    def _share(self, right: np.ndarray) -> float:
        return float(right[self._tested].mean())

    def test(self, layer: int, position: int | str, activations: np.ndarray) -> ProbeCell:
        """Test the probe of one layer; its p-value is not corrected yet."""
        coordinates = reduce_span(activations.astype(np.float64))
        right = predict(coordinates, self._examples.classes, self._folds)[self._tested]
        shuffled = float(
            np.mean(
                [
                    self._share(predict(coordinates, classes, self._folds))
                    for classes in self._shuffled
                ]
            )
        )
        chance = max(shuffled, self._token, self._majority)
        p = 1.0
        if chance < 1:
            p = float(binomtest(int(right.sum()), len(right), chance, alternative="greater").pvalue)
        accuracy = interval_of_mean(torch.tensor(right, dtype=torch.float64), self._resamples)
        return ProbeCell(
            layer=layer,
            position=position,
            n=len(right),
            accuracy=accuracy,
            shuffled=shuffled,
            selectivity=accuracy.mean - shuffled,
            token=self._token,
            majority=self._majority,
            p=p,
        )


def _take_examples(examples: Examples, members: Sequence[int]) -> Examples:
    pairs = tuple(examples.task.pairs[number] for number in members)
    task = replace(examples.task, pairs=pairs, splits=(None,) * len(pairs))
    return replace(
        examples, task=task, classes=tuple(examples.classes[number] for number in members)
    )


def _why_not_removed(labelled: Examples) -> str:
    """Return why the direction cannot be removed; "" if it can."""
    if labelled.pairs is None:
        return "No direction was removed: labelled prompts have no answers to measure by."
    if len(labelled.names) > 2:
        return (
            f"No direction was removed: the label has {len(labelled.names)} classes, and only a "
            "probe of two has a single direction."
        )
    return ""


def _remove(
    labelled: Examples,
    readings: _ExampleActivations,
    result: ProbeResult,
    engine: Engine,
    metric: MetricName | None,
    seed: int,
) -> DirectionRemoval | None:
    """Remove the direction of the best probe, fitted on some templates, on pairs of the others.

    Returns:
        What is lost; None if no pairs are left for one of the two.
    """
    assert labelled.pairs is not None
    best = result.best
    column = result.positions.index(best.position)
    fit, test = _halves(labelled, labelled.pairs, readings.examples_with(column), seed)
    if not test or len({labelled.classes[number] for number in fit}) < 2:
        return None
    activations = readings.by_layer[best.layer][fit, column].astype(np.float64)
    direction = fit_direction(activations, [labelled.classes[number] for number in fit])
    controls = draw_controls(activations, direction, CONTROL_DIRECTIONS, seed)
    pairs = tuple(labelled.pairs.pairs[number] for number in test)
    part = replace(labelled.pairs, pairs=pairs, splits=(None,) * len(pairs))
    measured = Engine(engine.backend, part, metric=metric, memory=engine.memory, meter=engine.meter)
    places = [row[0] for row in locate_positions(part, [best.position])]
    removed = remove_directions(
        measured,
        Site(result.site, best.layer),
        places,
        np.vstack([direction.unit, controls.units]),
        np.vstack([direction.unit, controls.reads]),
        direction.mean,
    )
    total = float(((activations - direction.mean) ** 2).sum(1).mean())
    share = direction.variance / total if total > 0 else 0.0
    return summarise_removal(measured, removed, best.layer, best.position, share, controls.kind)


def _halves(
    labelled: Examples, pairs: Task, members: Sequence[int], seed: int
) -> tuple[list[int], list[int]]:
    """Return the examples to fit on, and the pairs to measure, of other templates.

    The task's own split decides. A task without one is divided as for the first fold.
    """
    n = len(pairs)  # with the label `side`, example i + n is the corrupted prompt of pair i
    splits = list(pairs.splits)
    if not {"discovery", "heldout"} <= set(splits):
        groups = [labelled.groups[number] for number in members]
        train, test = split_folds([labelled.classes[i] for i in members], groups, seed)[0]
        fit = [members[index] for index in train]
        held = sorted({members[index] % n for index in test} - {number % n for number in fit})
    else:
        fit = [number for number in members if splits[number % n] == "discovery"]
        held = [number for number in members if number < n and splits[number] == "heldout"]
    step = max(1, -(-len(held) // MAX_REMOVAL_PAIRS))
    return fit, held[::step]
