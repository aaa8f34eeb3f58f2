"""Rows: changed prompts to be run, and their cutting into batches.

A row is one pair's prompt with something changed. What a method says of its rows is where the change enters (`start`,
`first`); from this the planner knows which layers and positions can differ, and computes only those: blocks before `start` are
skipped, keys and values of positions before `first` are reused. Rows are sorted by `first` and length so that a batch wastes little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.engine.prompts import Prompts, Side
from discovery.interventions import Edit


@dataclass(frozen=True)
class Window:
    """A batch of rows and the positions `first` to `end`-1 computed for them.

    Attributes:
        index: which rows of the job. pair: their pairs.
    """

    index: Int[Tensor, "n"]
    pair: Int[Tensor, "n"]
    first: int
    end: int

    @property
    def width(self) -> int:
        return self.end - self.first


@dataclass(frozen=True)
class Rows:
    """Rows that start at one layer.

    Attributes:
        base: whose prompt they are, apart from the change.
        pair: of each row. first: of each row, the first position at which anything can differ from the base run.
        start: the layer at which the change enters (n_layers: after the last block); middle: after its attention.
        residual: the changed residual stream at the start, for a window; None is the base's own.
        edits: changes at later sites, for a window.
    """

    base: Side
    pair: Int[Tensor, "row"]
    first: Int[Tensor, "row"]
    start: int = 0
    middle: bool = False
    residual: Callable[[Window], Float[Tensor, "n pos d_model"]] | None = None
    edits: Callable[[Window], list[Edit]] | None = None

    def __len__(self) -> int:
        return len(self.pair)

    def take(self, kept: Int[Tensor, "n"]) -> Rows:
        """Some of these rows."""

        def of(window: Window) -> Window:
            return Window(kept[window.index], window.pair, window.first, window.end)

        residual, edits = self.residual, self.edits
        return replace(
            self,
            pair=self.pair[kept],
            first=self.first[kept],
            residual=None if residual is None else lambda window: residual(of(window)),
            edits=None if edits is None else lambda window: edits(of(window)),
        )

    def pointwise(self, n_layers: int) -> bool:
        """Whether nothing after the start moves information between positions."""
        return self.start == n_layers or (self.middle and self.start == n_layers - 1)


def cut(rows: Rows, prompts: Prompts, n_layers: int, *, reuse: bool, most: Callable[[int, int], int]) -> Iterator[Window]:
    """Cut rows into windows.

    Args:
        reuse: whether keys and values of earlier positions can be reused.
        most: how many rows of (first, end) a batch may have.
    """
    length = prompts.length[rows.pair]
    if rows.pointwise(n_layers):  # only the answer position matters
        first, end = length - 1, length
    else:
        first, end = (rows.first if reuse else torch.zeros_like(rows.first)), length
        first = torch.minimum(first, length - 1)
    order = torch.argsort(first * (prompts.width + 1) + end, stable=True)
    firsts, ends = first[order].tolist(), end[order].tolist()
    exact = rows.pointwise(n_layers)
    begin = 0
    while begin < len(order):
        low, high = firsts[begin], ends[begin]
        stop = begin + 1
        while stop < len(order):
            reach = max(high, ends[stop])
            if stop - begin >= most(low, reach) or (exact and firsts[stop] != low) or wasteful(low, firsts[stop], reach):
                break
            high, stop = reach, stop + 1
        index = order[begin:stop]
        yield Window(index, rows.pair[index], low, high)
        begin = stop


def wasteful(low: int, first: int, end: int) -> bool:
    """Whether a row that could begin at `first` loses over a quarter of its work in a batch that begins at `low`."""
    return (first - low) * 4 > (end - low)
