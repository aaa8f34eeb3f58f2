"""Activation patching as a tutorial writes it.

Every cell of every pair takes a full forward pass; nothing is reused or skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from discovery.backends.base import Batch
from discovery.interventions import replace_with
from discovery.sites import Direction, MetricName, Site, SiteName
from discovery.tasks.task import EncodedPair, Task

POSITION_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
METRICS: tuple[MetricName, ...] = ("logit_difference", "probability_difference", "kl_divergence")


def metric_of(name: MetricName, logits: Tensor, pair: EncodedPair, clean: Tensor) -> float:
    """Compute the metric of one prompt from its logits [d_vocab], token by token.

    Args:
        name: the metric.
        logits: the logits that are measured.
        pair: gives the answers and the wrong answers.
        clean: the logits of the clean prompt, which the divergence is from.
    """
    values = logits.double().tolist()
    if name == "logit_difference":
        right = math.log(sum(math.exp(values[token]) for token in pair.answer))
        wrong = math.log(sum(math.exp(values[token]) for token in pair.wrong))
        return right - wrong
    probabilities = _softmax(values)
    if name == "probability_difference":
        right = sum(probabilities[token] for token in pair.answer)
        wrong = sum(probabilities[token] for token in pair.wrong)
        return right - wrong
    reference = _softmax(clean.double().tolist())
    return sum(p * math.log(p / q) for p, q in zip(reference, probabilities, strict=True))


def _softmax(values: Sequence[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


@dataclass(frozen=True, kw_only=True)
class NaiveSweep:
    """The logits of every cell.

    Attributes:
        pairs: the pairs.
        cells: for each pair, the logits [d_vocab] by (layer, *cell). A cell that the pair lacks is
            missing.
        clean: the logits of each clean prompt.
        corrupted: the logits of each corrupted prompt.
        shape: the shape of the grid, layers first.
    """

    pairs: tuple[EncodedPair, ...]
    cells: list[dict[tuple[int, ...], Tensor]]
    clean: list[Tensor]
    corrupted: list[Tensor]
    shape: tuple[int, ...]

    def per_pair(self, metric: MetricName) -> Tensor:
        """Return the metric [pair layer …] in float64, NaN if a pair lacks the cell."""
        grid = torch.full((len(self.pairs), *self.shape), math.nan, dtype=torch.float64)
        for number, (pair, cells) in enumerate(zip(self.pairs, self.cells, strict=True)):
            for cell, logits in cells.items():
                grid[(number, *cell)] = metric_of(metric, logits, pair, self.clean[number])
        return grid

    def base(self, metric: MetricName, side: str) -> Tensor:
        """Return the metric of each unpatched prompt of a side, [pair]."""
        logits = self.clean if side == "clean" else self.corrupted
        rows = zip(logits, self.pairs, self.clean, strict=True)
        return torch.tensor([metric_of(metric, *row) for row in rows], dtype=torch.float64)

    def values(self, metric: MetricName, direction: Direction) -> Tensor:
        """Return the ratio of means over the pairs that have each cell."""
        grid = self.per_pair(metric)
        clean = self.base(metric, "clean")
        corrupted = self.base(metric, "corrupted")
        values = torch.full(self.shape, math.nan, dtype=torch.float64)
        for cell in torch.cartesian_prod(*(torch.arange(size) for size in self.shape)).tolist():
            column = grid[(slice(None), *cell)]
            pairs = [n for n in range(len(self.pairs)) if not math.isnan(column[n])]
            if not pairs:
                continue
            patched, high, low = (
                sum(float(row[n]) for n in pairs) / len(pairs) for row in (column, clean, corrupted)
            )
            if abs(high - low) >= 1e-6:  # a smaller gap is nothing to normalise by
                change = patched - low if direction == "denoising" else high - patched
                values[tuple(cell)] = change / (high - low)
        return values


def naive_sweep(
    model: Any,
    pairs: Sequence[EncodedPair],
    site: SiteName,
    direction: Direction,
    columns: Sequence[int | str],
    *,
    alone: bool = False,
) -> NaiveSweep:
    """Patch every cell, each in a prompt of its own.

    Args:
        model: the model.
        pairs: the pairs.
        site: the site that is patched.
        direction: denoising or noising.
        columns: the positions from 0, from the end (negative), or labels.
        alone: run each prompt by itself. Otherwise the cells of a layer are the rows of one batch,
            which takes less time.
    """
    cells, clean_logits, corrupted_logits = [], [], []
    for pair in pairs:
        clean_logits.append(model.run(_batch(pair.clean)).logits[0])
        corrupted_logits.append(model.run(_batch(pair.corrupted)).logits[0])
        cells_of_pair: dict[tuple[int, ...], Tensor] = {}
        for layer in range(model.info.n_layers):
            logits_by_cell, n_heads = _patch_layer(
                model, pair, site, layer, direction, columns, alone=alone
            )
            cells_of_pair |= logits_by_cell
        cells.append(cells_of_pair)
    heads = (n_heads,) if n_heads else ()
    positions = (len(columns),) if columns else ()
    return NaiveSweep(
        pairs=tuple(pairs),
        cells=cells,
        clean=clean_logits,
        corrupted=corrupted_logits,
        shape=(model.info.n_layers, *heads, *positions),
    )


def mlp_effect(
    model: Any, task: Task, layer: int, direction: Direction, metric: MetricName
) -> Tensor:
    """Exchange the output of an MLP at all positions, one pair in a full pass at a time: [pair]."""
    site = Site("mlp_out", layer)
    values = []
    for pair in task.pairs:
        source, base = _sides(pair, direction)
        value = model.run(_batch(source), [site]).activations[site]
        logits = model.run(_batch(base), edits=[replace_with(site, value)]).logits[0]
        clean = model.run(_batch(pair.clean)).logits[0]
        values.append(metric_of(metric, logits, pair, clean))
    return torch.tensor(values, dtype=torch.float64)


def _patch_layer(
    model: Any,
    pair: EncodedPair,
    site: SiteName,
    layer: int,
    direction: Direction,
    columns: Sequence[int | str],
    *,
    alone: bool,
) -> tuple[dict[tuple[int, ...], Tensor], int]:
    """Patch every cell of a layer; return the logits by cell, and the number of heads, if any."""
    source, base = _sides(pair, direction)
    kind: Any = "z" if site.startswith("head_out") else site
    at = Site(kind, layer)
    value = model.run(_batch(source), [at]).activations[at]
    head_axis = 1 if kind == "pattern" else 2
    n_heads = 0 if site in POSITION_SITES else value.shape[head_axis]
    cells = list(_cells(site, value, n_heads, _positions(pair, columns)))
    batch_size = 1 if alone else max(1, len(cells))
    logits_by_cell = {}
    for first in range(0, len(cells), batch_size):
        batch = cells[first : first + batch_size]
        edit = replace_with(at, value, torch.cat([where for _, where in batch]))
        logits = model.run(_batch(base, len(batch)), edits=[edit]).logits
        for (cell, _), row in zip(batch, logits, strict=True):
            logits_by_cell[(layer, *cell)] = row
    return logits_by_cell, n_heads


def _cells(
    site: SiteName, value: Tensor, n_heads: int, positions: dict[int, int]
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Yield each cell with its mask, which has the shape of the site without the last axis."""
    nowhere = torch.zeros(value.shape[:-1], dtype=torch.bool)
    if site in POSITION_SITES:
        for column, position in positions.items():
            where = nowhere.clone()
            where[:, position] = True
            yield (column,), where
        return
    for head in range(n_heads):
        targets: list[tuple[tuple[int, ...], Any]] = [
            ((head, column), position) for column, position in positions.items()
        ]
        for cell, position in targets or [((head,), slice(None))]:
            where = nowhere.clone()
            by_position = where.transpose(1, 2) if site == "pattern" else where
            by_position[:, position, head] = True
            yield cell, where


def _positions(pair: EncodedPair, columns: Sequence[int | str]) -> dict[int, int]:
    """Map the number of each column that the pair has to the column's position in it."""
    length = len(pair.clean)
    positions = {}
    for number, column in enumerate(columns):
        if isinstance(column, str):
            position = pair.labels.get(column, -1)
        else:
            position = column if column >= 0 else length + column
        if 0 <= position < length:
            positions[number] = position
    return positions


def _sides(pair: EncodedPair, direction: Direction) -> tuple[Sequence[int], Sequence[int]]:
    """Return the prompt that values come from, and the prompt that is patched."""
    if direction == "denoising":
        return pair.clean, pair.corrupted
    return pair.corrupted, pair.clean


def _batch(tokens: Sequence[int], rows: int = 1) -> Batch:
    return Batch(torch.tensor([list(tokens)] * rows), torch.tensor([len(tokens) - 1] * rows))
