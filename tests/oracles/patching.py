"""Activation patching as it is written in a tutorial: a full forward pass for each cell of each pair, nothing reused or skipped."""

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
from discovery.tasks.task import EncodedPair

STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
METRICS: tuple[MetricName, ...] = ("logit_difference", "probability_difference", "kl_divergence")


def metric_of(name: MetricName, logits: Tensor, pair: EncodedPair, clean: Tensor) -> float:
    """One prompt's metric from its logits [d_vocab], token by token."""
    values, reference = logits.double().tolist(), clean.double().tolist()
    if name == "logit_difference":
        right, wrong = (
            math.log(sum(math.exp(values[token]) for token in tokens))
            for tokens in (pair.answer, pair.wrong)
        )
        return right - wrong
    total, total_clean = (sum(math.exp(value) for value in row) for row in (values, reference))
    if name == "probability_difference":
        return (
            sum(math.exp(values[token]) for token in pair.answer) / total
            - sum(math.exp(values[token]) for token in pair.wrong) / total
        )
    p, q = (
        [math.exp(value) / all_ for value in row]
        for row, all_ in ((reference, total_clean), (values, total))
    )
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@dataclass(frozen=True)
class NaiveSweep:
    """Every cell's logits: cells[pair][layer, *cell] -> [d_vocab]; a cell that the pair lacks is missing."""

    pairs: tuple[EncodedPair, ...]
    cells: list[dict[tuple[int, ...], Tensor]]
    clean: list[Tensor]
    corrupted: list[Tensor]
    shape: tuple[int, ...]

    def per_pair(self, metric: MetricName) -> Tensor:
        """[pair layer …] in float64, NaN where a pair lacks the cell."""
        out = torch.full((len(self.pairs), *self.shape), math.nan, dtype=torch.float64)
        for number, (pair, cells) in enumerate(zip(self.pairs, self.cells, strict=True)):
            for place, logits in cells.items():
                out[(number, *place)] = metric_of(metric, logits, pair, self.clean[number])
        return out

    def base(self, metric: MetricName, side: str) -> Tensor:
        """[pair]"""
        rows = zip(
            self.clean if side == "clean" else self.corrupted, self.pairs, self.clean, strict=True
        )
        return torch.tensor([metric_of(metric, *row) for row in rows], dtype=torch.float64)

    def values(self, metric: MetricName, direction: Direction) -> Tensor:
        """The ratio of means over the pairs that have each cell."""
        grid, clean, corrupted = (
            self.per_pair(metric),
            self.base(metric, "clean"),
            self.base(metric, "corrupted"),
        )
        out = torch.full(self.shape, math.nan, dtype=torch.float64)
        for place in torch.cartesian_prod(*(torch.arange(size) for size in self.shape)).tolist():
            have = [n for n in range(len(self.pairs)) if not math.isnan(grid[(n, *place)])]
            if have:
                patched, up, down = (
                    sum(float(row[n]) for n in have) / len(have)
                    for row in (grid[(slice(None), *place)], clean, corrupted)
                )
                if abs(up - down) >= 1e-6:  # below, there is nothing to normalise by
                    out[tuple(place)] = (
                        patched - down if direction == "denoising" else up - patched
                    ) / (up - down)
        return out


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
        columns: the positions from 0, from the end (negative), or labels.
        alone: run each prompt by itself; else a layer's cells are the rows of one batch, which takes less time.
    """
    cells, cleans, corrupteds = [], [], []
    shape = None
    for pair in pairs:
        clean, corrupted = (
            model.run(_batch(tokens)).logits[0] for tokens in (pair.clean, pair.corrupted)
        )
        cleans.append(clean)
        corrupteds.append(corrupted)
        base, source = (
            (pair.corrupted, pair.clean)
            if direction == "denoising"
            else (pair.clean, pair.corrupted)
        )
        found: dict[tuple[int, ...], Tensor] = {}
        for layer in range(model.info.n_layers):
            kind: Any = "z" if site.startswith("head_out") else site
            at = Site(kind, layer)
            value = model.run(_batch(source), [at]).activations[at]
            heads = 0 if site in STREAM else value.shape[1 if kind == "pattern" else 2]
            cells_here = list(_cells(site, value, heads, _places(pair, columns)))
            for part in (
                [[each] for each in cells_here] if alone else [cells_here] if cells_here else []
            ):
                edit = replace_with(at, value, torch.cat([where for _, where in part]))
                logits = model.run(_batch(base, len(part)), edits=[edit]).logits
                found.update(
                    {(layer, *cell): row for (cell, _), row in zip(part, logits, strict=True)}
                )
            shape = (
                model.info.n_layers,
                *((heads,) if heads else ()),
                *((len(columns),) if columns else ()),
            )
        cells.append(found)
    assert shape is not None
    return NaiveSweep(tuple(pairs), cells, cleans, corrupteds, shape)


def _cells(
    site: SiteName, value: Tensor, heads: int, places: dict[int, int]
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Each cell and where it patches, in the shape of the site without its last axis."""
    nowhere = torch.zeros(value.shape[:-1], dtype=torch.bool)
    if site in STREAM:
        for column, position in places.items():
            where = nowhere.clone()
            where[:, position] = True
            yield (column,), where
        return
    for head in range(heads):
        for cell, position in [((head, column), place) for column, place in places.items()] or [
            ((head,), None)
        ]:
            where = nowhere.clone()
            (where.transpose(1, 2) if site == "pattern" else where)[
                :, slice(None) if position is None else position, head
            ] = True
            yield cell, where


def _places(pair: EncodedPair, columns: Sequence[int | str]) -> dict[int, int]:
    found = {}
    for number, column in enumerate(columns):
        position = (
            pair.labels.get(column)
            if isinstance(column, str)
            else column
            if column >= 0
            else len(pair.clean) + column
        )
        if position is not None and 0 <= position < len(pair.clean):
            found[number] = position
    return found


def _batch(tokens: Sequence[int], rows: int = 1) -> Batch:
    return Batch(torch.tensor([list(tokens)] * rows), torch.tensor([len(tokens) - 1] * rows))
