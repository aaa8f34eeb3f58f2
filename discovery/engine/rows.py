"""Rows: changed prompts to be run, and their cutting into batches.

A row is one pair's prompt with something changed. What a method says of its rows is where the change enters (`start`,
`first`); from this the planner knows which layers and positions can differ, and computes only those: blocks before `start` are
skipped, keys and values of positions before `first` are reused. Rows are sorted by `first` and length so that a batch wastes little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.engine.prompts import Prompts, Side
from discovery.interventions import Edit

PASS_OVERHEAD = 64  # positions that a pass costs beside those it computes: the weights are read, the kernels launched
MAX_LOOKBACK = 128  # spans looked back on: beyond, nothing is merged


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
        making: multiply-adds a position that `residual` takes, which are counted too.
    """

    base: Side
    pair: Int[Tensor, "row"]
    first: Int[Tensor, "row"]
    start: int = 0
    after_attention: bool = False
    residual: Callable[[Window], Float[Tensor, "n pos d_model"]] | None = None
    edits: Callable[[Window], list[Edit]] | None = None
    residual_macs: int = 0

    def __len__(self) -> int:
        return len(self.pair)

    def take(self, index: Int[Tensor, "n"]) -> Rows:
        """Some of these rows."""

        def of(window: Window) -> Window:
            return Window(index[window.index], window.pair, window.first, window.end)

        residual, edits = self.residual, self.edits
        return replace(
            self,
            pair=self.pair[index],
            first=self.first[index],
            residual=None if residual is None else lambda window: residual(of(window)),
            edits=None if edits is None else lambda window: edits(of(window)),
        )

    def is_pointwise(self, n_layers: int) -> bool:
        """Whether nothing after the start moves information between positions."""
        return self.start == n_layers or (self.after_attention and self.start == n_layers - 1)


@dataclass(frozen=True)
class JoinedRows:
    """Rows that enter at different layers and are run in one pass over the layers: the weights are read once for all of them.

    Attributes:
        jobs: what is run together, in order of their start; residual streams only, no edits.
    """

    jobs: tuple[Rows, ...]

    def __post_init__(self) -> None:
        if any(
            job.edits is not None or job.residual is None or job.after_attention
            for job in self.jobs
        ):
            raise ValueError(
                "only rows that are residual streams at a layer's input can be run together"
            )
        if [job.start for job in self.jobs] != sorted(job.start for job in self.jobs) or len(
            {job.base for job in self.jobs}
        ) != 1:
            raise ValueError(
                "rows that are run together have one base and come in the order of their start"
            )

    def __len__(self) -> int:
        return sum(len(job) for job in self.jobs)

    @property
    def base(self) -> Side:
        return self.jobs[0].base

    @property
    def pair(self) -> Int[Tensor, "row"]:
        return torch.cat([job.pair for job in self.jobs])

    @property
    def first(self) -> Int[Tensor, "row"]:
        return torch.cat([job.first for job in self.jobs])

    def is_pointwise(self, n_layers: int) -> bool:
        """Never: such rows are run by themselves, at their answer position alone."""
        return False

    def split(self, window: Window) -> list[tuple[Rows, Window]]:
        """A window's rows by job, each job with its own numbers; the window's rows are in order."""
        parts, offset = [], 0
        for job in self.jobs:
            mine = (window.index >= offset) & (window.index < offset + len(job))
            if bool(mine.any()):
                parts.append(
                    (
                        job,
                        Window(
                            window.index[mine] - offset, window.pair[mine], window.first, window.end
                        ),
                    )
                )
            offset += len(job)
        return parts


def cut_windows(
    rows: Rows | JoinedRows,
    prompts: Prompts,
    n_layers: int,
    *,
    reuse_prefix: bool,
    max_rows: Callable[[int, int], int],
) -> Iterator[Window]:
    """Cut rows into windows, each of as many rows as `most` allows, so that little is computed in vain and few passes are run.

    Args:
        reuse: whether keys and values of earlier positions can be reused.
        most: how many rows of (first, end) a batch may have.
    """
    length = prompts.length[rows.pair]
    alone = rows.is_pointwise(n_layers)
    if alone:  # only the answer position matters
        first, end = length - 1, length
    else:
        first, end = (rows.first if reuse_prefix else torch.zeros_like(rows.first)), length
        first = torch.minimum(first, length - 1)
    order = torch.argsort(first * (prompts.width + 1) + end, stable=True)
    kinds, counts = torch.unique_consecutive(
        torch.stack([first, end], 1)[order], dim=0, return_counts=True
    )
    spans, sizes = [(low, high) for low, high in kinds.tolist()], counts.tolist()
    firsts, begin = first[order].tolist(), 0
    for group in [[n] for n in range(len(sizes))] if alone else group_spans(spans, sizes):
        stop, reach = begin + sum(sizes[n] for n in group), max(spans[n][1] for n in group)
        while begin < stop:
            index = order[begin : min(begin + max_rows(firsts[begin], reach), stop)]
            yield Window(
                index.sort().values,
                rows.pair[index.sort().values],
                firsts[begin],
                int(end[index].max()),
            )
            begin += len(index)


def group_spans(spans: Sequence[tuple[int, int]], sizes: Sequence[int]) -> list[list[int]]:
    """Which consecutive (first, end) spans to run together: the least work, where each pass costs `PASS_OVERHEAD` positions beside its own.

    Args:
        spans: sorted by first. sizes: rows of each.
    """
    best, came = [0.0] + [math.inf] * len(spans), [0] * (len(spans) + 1)
    for stop in range(1, len(spans) + 1):
        high = count = 0
        for begin in range(stop - 1, max(stop - 1 - MAX_LOOKBACK, -1), -1):
            high, count = max(high, spans[begin][1]), count + sizes[begin]
            cost = best[begin] + count * (high - spans[begin][0]) + PASS_OVERHEAD
            if cost < best[stop]:
                best[stop], came[stop] = cost, begin
    groups: list[list[int]] = []
    stop = len(spans)
    while stop:
        groups.append(list(range(came[stop], stop)))
        stop = came[stop]
    return groups[::-1]
