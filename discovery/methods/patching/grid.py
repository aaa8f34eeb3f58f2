"""The grid of effects that a patching sweep gives, and ways to read it.

m(·) is the metric averaged over pairs. The normalised effect of a patched cell is a ratio of means,

    denoising: (m(patched) − m(corrupted)) / (m(clean) − m(corrupted))
    noising:   (m(clean) − m(patched)) / (m(clean) − m(corrupted))

so 1 is the whole behaviour and 0 is none of it. A negative value belongs to a part that works
against the behaviour.

NaN marks a cell that no pair has, or one that was not measured; it never stands for a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.engine.cost import MeasurementCost
from discovery.methods.patching.screening import ScreenReport
from discovery.sites import (
    Direction,
    KeyValueHead,
    MetricName,
    Node,
    SiteName,
    head,
    key_value_group,
    mlp,
)
from discovery.tasks.task import EncodedPair, Task

MIN_METRIC_GAP = 1e-6  # a smaller |m(clean) − m(corrupted)| is too small to divide by


@dataclass(frozen=True, kw_only=True, repr=False)
class Sweep:
    """A grid of patching effects.

    Attributes:
        site: the site that was patched.
        direction: denoising or noising.
        metric: what was measured in each run.
        values: the normalised effects (see the module), [layer position], [layer head],
            [layer kv_head] or [layer head position]. NaN if no pair has the cell, if it was not
            measured, or if m(clean) − m(corrupted) is too small to divide by.
        per_pair: the raw metric of each patched run, [pair …] with the same cells. NaN if the pair
            lacks the cell or it was not measured.
        metric_clean: the metric of each clean run, [pair].
        metric_corrupted: the metric of each corrupted run, [pair].
        positions: what the position axis counts: positions from 0, positions from the end (−1 is
            the last token), or labels. Empty if the grid has no position axis.
        cost: the work and the time that the sweep took.
        warnings: what a reader of the numbers must know.
        screen: if the sweep was screened, what was estimated and which cells were measured.
            `values` and `per_pair` never hold estimates.
        query_heads: for k and v, if query heads share them: the query heads of each key-value
            head. The second axis then counts key-value heads. Empty if it counts heads.
    """

    site: SiteName
    direction: Direction
    metric: MetricName
    values: Float[Tensor, "..."]
    per_pair: Float[Tensor, "pair ..."]
    metric_clean: Float[Tensor, "pair"]
    metric_corrupted: Float[Tensor, "pair"]
    positions: tuple[int | str, ...]
    cost: MeasurementCost
    warnings: tuple[str, ...] = ()
    screen: ScreenReport | None = None
    query_heads: tuple[tuple[int, ...], ...] = ()

    def __repr__(self) -> str:
        """Return one line; the numbers are in `values` and `per_pair`."""
        shape = " × ".join(
            f"{size} {axis}s" for axis, size in zip(self.axes, self.values.shape, strict=True)
        )
        largest = top_cells(self, 1)
        best = ""
        if largest:
            cell = largest[0]
            place = getattr(cell.unit, "label", f"layer {cell.layer}")
            at = "" if cell.position is None else f" at {cell.position}"
            best = f"; largest {cell.value:.3f} ({place}{at})"
        return (
            f"<Sweep {self.site}, {self.direction}, {self.metric}: {shape}, "
            f"{len(self.per_pair)} pairs{best}>"
        )

    def unit(self, layer: int, index: int | None = None) -> Node | KeyValueHead | None:
        """Return the node or key-value head that a cell patches.

        That is the head or key-value head at `index`, or, in a grid of `mlp_out`, the layer's MLP.
        A cell of the residual stream or of the whole attention output has none.
        """
        if index is None:
            return mlp(layer) if self.site == "mlp_out" else None
        if self.query_heads:
            return KeyValueHead(layer, index, self.query_heads[index])
        return head(layer, index)

    @property
    def head_labels(self) -> list[str]:
        """Labels along the head axis: 0, or KV0 = heads 0–2; empty if there is no such axis."""
        if self.query_heads:
            return [key_value_group(index, heads) for index, heads in enumerate(self.query_heads)]
        return [str(index) for index in range(self.values.shape[1])] if "head" in self.axes else []

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of `values`; "kv_head" for "head" if query heads share the site."""
        by_head = "kv_head" if self.query_heads else "head"
        middle = (by_head,) if self.values.ndim == 3 or not self.positions else ()
        return ("layer", *middle, *(("position",) if self.positions else ()))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a grid.

    Attributes:
        layer: the layer of the patched site.
        head: the head; None if the grid has no axis of heads.
        position: the position or label, as the grid counts it; None if the grid has no positions.
        value: the normalised effect.
        kv_head: the key-value head, in a grid by key-value heads that query heads share.
        unit: the node or key-value head that was patched, as `Sweep.unit` gives it.
    """

    layer: int
    head: int | None
    position: int | str | None
    value: float
    kv_head: int | None = None
    unit: Node | KeyValueHead | None = None

    @property
    def query_heads(self) -> tuple[int, ...]:
        """The query heads that share the cell's key-value head; empty for any other cell."""
        return self.unit.query_heads if isinstance(self.unit, KeyValueHead) else ()


def top_cells(sweep: Sweep, count: int) -> tuple[Cell, ...]:
    """Return the `count` measured cells with the largest absolute effect; ties in forward order."""
    flat = sweep.values.detach().to("cpu", torch.float64).flatten()
    measured = (~flat.isnan()).nonzero(as_tuple=True)[0]
    size = flat[measured].abs().mul(1e9).round()  # differences of rounding are ties
    largest = measured[size.argsort(descending=True, stable=True)[:count]]
    indices = torch.stack(torch.unravel_index(largest, sweep.values.shape), 1).tolist()
    return tuple(
        _cell(sweep, index, float(flat[number]))
        for index, number in zip(indices, largest.tolist(), strict=True)
    )


def _cell(sweep: Sweep, index: list[int], value: float) -> Cell:
    at = dict(zip(sweep.axes, index, strict=True))
    return Cell(
        layer=at["layer"],
        head=at.get("head"),
        position=sweep.positions[at["position"]] if "position" in at else None,
        value=value,
        kv_head=at.get("kv_head"),
        unit=sweep.unit(at["layer"], at.get("kv_head", at.get("head"))),
    )


def effect_change(patched: Tensor, base: Tensor, direction: Direction) -> Tensor:
    """Return how far patching moves the metric of the base run, positive towards the source's.

    Args:
        patched: the metric with something patched.
        base: the metric of the run that is patched (corrupted when denoising, clean when noising).
        direction: denoising or noising.
    """
    return patched - base if direction == "denoising" else base - patched


def normalise(
    per_pair: Float[Tensor, "pair ..."],
    clean: Float[Tensor, "pair"],
    corrupted: Float[Tensor, "pair"],
    direction: Direction,
) -> tuple[Float[Tensor, "..."], tuple[str, ...]]:
    """Divide the mean change of every cell by the mean gap, over the pairs that have the cell.

    Args:
        per_pair: the metric with each cell patched; NaN if a pair lacks the cell.
        clean: the metric of the clean runs.
        corrupted: the metric of the corrupted runs.
        direction: denoising or noising.

    Returns:
        The normalised effects, and the warnings about them. An effect is NaN, with a warning, if
        |m(clean) − m(corrupted)| is below 1e-6 over the cell's pairs.
    """
    exists = ~per_pair.isnan()
    count = exists.sum(0)

    def by_cell(values: Tensor) -> Tensor:
        return values.double().reshape(-1, *[1] * (per_pair.ndim - 1))

    def mean(values: Tensor) -> Tensor:
        return torch.where(exists, values, 0.0).sum(0) / count

    gap = mean(by_cell(clean - corrupted))
    base = by_cell(corrupted if direction == "denoising" else clean)
    change = effect_change(per_pair.double(), base, direction)
    is_too_small = gap.abs() < MIN_METRIC_GAP
    values = mean(change) / torch.where(is_too_small, float("nan"), gap)
    warnings: tuple[str, ...] = ()
    if bool((is_too_small & (count > 0)).any()):
        warnings = (
            "m(clean) − m(corrupted) is below 1e-6: there is nothing to normalise by, so values "
            "are NaN there; per_pair holds the raw metric.",
        )
    return values.float(), warnings


def align_by_label(sweep: Sweep, task: Task) -> Sweep:
    """Rearrange a sweep by position from the end so that its position axis counts labels.

    A sweep by label alone is blind to a behaviour that passes through an unlabelled token, and one
    by position from the end mixes different words. Here each token of each pair decides: it counts
    under its label if it has one, and otherwise under its position from the end. Nothing is
    measured again; each cell averages the pairs that have it.

    Args:
        sweep: a sweep by position over every pair of the task. It is returned unchanged if the
            prompts have one length, or if it was screened (its cells were chosen by position).
        task: the task that was swept.
    """
    if task.has_one_length or not sweep.positions or sweep.screen is not None:
        return sweep
    names_by_pair = [_name_positions(pair) for pair in task.pairs]
    positions: dict[str | int, list[int]] = {}
    for names in names_by_pair:
        for position, name in names.items():
            positions.setdefault(name, []).append(position)
    columns = sorted(
        positions, key=lambda name: (sum(positions[name]) / len(positions[name]), str(name))
    )
    per_pair = sweep.per_pair.new_full((*sweep.per_pair.shape[:-1], len(columns)), float("nan"))
    new_index = {name: index for index, name in enumerate(columns)}
    old_index = {position: index for index, position in enumerate(sweep.positions)}
    for number, names in enumerate(names_by_pair):
        for position, name in names.items():
            measured = sweep.per_pair[number, ..., old_index[position]]
            per_pair[number, ..., new_index[name]] = measured
    values, warnings = normalise(
        per_pair, sweep.metric_clean, sweep.metric_corrupted, sweep.direction
    )
    return replace(
        sweep, per_pair=per_pair, values=values, positions=tuple(columns), warnings=warnings
    )


def _name_positions(pair: EncodedPair) -> dict[int, str | int]:
    """Map each position, counted from the end, to its label, or to itself if it has none."""
    length = len(pair.clean)
    labels = {
        position - length: name for name, position in sorted(pair.labels.items(), reverse=True)
    }
    return {position: labels.get(position, position) for position in range(-length, 0)}
