"""Rows, which are changed prompts to be run, and how they are cut into batches.

A row is one pair's prompt with something changed. A method says where the change enters: at which
layer (`start`) and at which position (`first`). Only later layers and positions can differ from the
unchanged run, so only those are computed: blocks before `start` are skipped, and keys and values of
positions before `first` are reused. Rows are sorted by `first` and by length, so that the rows of a
batch need much the same positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.engine.prompts import Prompts, Side
from discovery.interventions import Edit

# The fixed cost of a pass (weights are read, kernels are launched), in positions of computation.
PASS_OVERHEAD = 64
# The longest group of spans that `group_spans` considers, which bounds its time.
MAX_LOOKBACK = 128


@dataclass(frozen=True)
class Window:
    """A batch of rows and the positions `first` to `end` - 1 that are computed for them.

    Attributes:
        index: the numbers of these rows within their job.
        pair: the pair of each row.
        first: the first position that is computed.
        end: the position after the last one that is computed.
    """

    index: Int[Tensor, "n"]
    pair: Int[Tensor, "n"]
    first: int
    end: int

    @property
    def width(self) -> int:
        """The number of positions that are computed."""
        return self.end - self.first

    def part(self, rows: slice) -> Window:
        """Return the window of some of its rows, with the same positions."""
        return Window(self.index[rows], self.pair[rows], self.first, self.end)


def is_pointwise(start: int, after_attention: bool, n_layers: int) -> bool:
    """Return whether no attention follows a start, so that positions cannot affect each other.

    Args:
        start: the layer at which a run starts; `n_layers` is the place after the last block.
        after_attention: whether it starts after that layer's attention.
    """
    return start == n_layers or (after_attention and start == n_layers - 1)


@dataclass(frozen=True)
class Rows:
    """Changed prompts whose changes enter at one layer.

    Attributes:
        base: the side of the pairs whose prompts and unchanged runs the rows start from.
        pair: the pair of each row.
        first: for each row, the first position that can differ from the base run.
        start: the layer at which the change enters; n_layers is the place after the last block.
        after_attention: the change enters after the attention of the start layer.
        residual: gives the changed residual stream at the start, for a window. If it is None, the
            rows start from the base run's own residual stream.
        edits: gives changes at later sites, for a window.
        residual_macs: multiply-adds for one position that computing `residual` takes; they are
            added to the cost.
    """

    base: Side
    pair: Int[Tensor, "row"]
    first: Int[Tensor, "row"]
    _: KW_ONLY
    start: int = 0
    after_attention: bool = False
    residual: Callable[[Window], Float[Tensor, "n pos d_model"]] | None = None
    edits: Callable[[Window], list[Edit]] | None = None
    residual_macs: int = 0

    def __len__(self) -> int:
        return len(self.pair)

    def take(self, index: Int[Tensor, "n"]) -> Rows:
        """Return some of these rows as a job of their own."""

        def original(window: Window) -> Window:
            return Window(index[window.index], window.pair, window.first, window.end)

        residual, edits = self.residual, self.edits
        return replace(
            self,
            pair=self.pair[index],
            first=self.first[index],
            residual=None if residual is None else lambda window: residual(original(window)),
            edits=None if edits is None else lambda window: edits(original(window)),
        )

    def is_pointwise(self, n_layers: int) -> bool:
        """Return whether no attention follows the change."""
        return is_pointwise(self.start, self.after_attention, n_layers)


@dataclass(frozen=True)
class JoinedRows:
    """Rows that enter at different layers and are run in one pass over the layers.

    The weights are then read once for all of them. The jobs hold residual streams at a layer's
    input and no edits.

    Attributes:
        jobs: the rows that are run together, ordered by their start.
    """

    jobs: tuple[Rows, ...]

    def __post_init__(self) -> None:
        for job in self.jobs:
            if job.edits is not None or job.residual is None or job.after_attention:
                raise ValueError("only residual streams at a layer's input can be run together")
        starts = [job.start for job in self.jobs]
        if starts != sorted(starts) or len({job.base for job in self.jobs}) != 1:
            raise ValueError("rows that are run together need one base, and an order by start")

    def __len__(self) -> int:
        return sum(len(job) for job in self.jobs)

    @property
    def base(self) -> Side:
        """The side of the pairs that all jobs start from."""
        return self.jobs[0].base

    @property
    def start(self) -> int:
        """The first layer at which one of the jobs enters."""
        return self.jobs[0].start

    @property
    def pair(self) -> Int[Tensor, "row"]:
        """The pair of each row, job after job."""
        return torch.cat([job.pair for job in self.jobs])

    @property
    def first(self) -> Int[Tensor, "row"]:
        """The first position of each row that can differ from the base run, job after job."""
        return torch.cat([job.first for job in self.jobs])

    def is_pointwise(self, n_layers: int) -> bool:
        """Return False: pointwise rows are never joined, but run at their answer position alone."""
        return False

    def split(self, window: Window) -> list[tuple[Rows, Window]]:
        """Split a window whose rows are in ascending order into one window for each job.

        The windows count the rows of their own job from 0. Jobs without rows are left out.
        """
        parts = []
        offset = 0
        for job in self.jobs:
            mine = (window.index >= offset) & (window.index < offset + len(job))
            if bool(mine.any()):
                index = window.index[mine] - offset
                parts.append((job, Window(index, window.pair[mine], window.first, window.end)))
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
    """Cut rows into windows so that few positions are computed in vain and few passes are run.

    Args:
        rows: the rows to cut. Each comes in exactly one window.
        prompts: the prompts of the pairs.
        n_layers: the number of layers of the model.
        reuse_prefix: whether keys and values of earlier positions can be reused.
        max_rows: gives how many rows a batch may have that computes (first, end).
    """
    end = prompts.length[rows.pair]
    only_answer = rows.is_pointwise(n_layers)
    if only_answer:
        first = end - 1
    else:
        first = rows.first if reuse_prefix else torch.zeros_like(rows.first)
        first = torch.minimum(first, end - 1)
    order = torch.argsort(first * (prompts.width + 1) + end, stable=True)
    distinct, counts = torch.unique_consecutive(
        torch.stack([first, end], 1)[order], dim=0, return_counts=True
    )
    spans = [(low, high) for low, high in distinct.tolist()]
    sizes = counts.tolist()
    firsts = first[order].tolist()
    groups = [[n] for n in range(len(sizes))] if only_answer else group_spans(spans, sizes)
    begin = 0
    for group in groups:
        stop = begin + sum(sizes[n] for n in group)
        group_end = max(spans[n][1] for n in group)
        while begin < stop:
            index = order[begin : min(begin + max_rows(firsts[begin], group_end), stop)]
            ascending = index.sort().values
            yield Window(ascending, rows.pair[ascending], firsts[begin], int(end[index].max()))
            begin += len(index)


def group_spans(spans: Sequence[tuple[int, int]], sizes: Sequence[int]) -> list[list[int]]:
    """Choose which consecutive spans to run together, so that the total cost is the smallest.

    A group costs its number of rows times its width, plus `PASS_OVERHEAD`. The choice is made by
    dynamic programming over where a group begins.

    Args:
        spans: (first, end) positions, sorted by first.
        sizes: the number of rows of each span.

    Returns:
        The numbers of the spans in each group, in order.
    """
    lowest_cost = [0.0] + [math.inf] * len(spans)  # of the spans before this number
    group_begin = [0] * (len(spans) + 1)  # where the last group of that cheapest choice begins
    for stop in range(1, len(spans) + 1):
        end = count = 0
        for begin in range(stop - 1, max(stop - 1 - MAX_LOOKBACK, -1), -1):
            end = max(end, spans[begin][1])
            count += sizes[begin]
            cost = lowest_cost[begin] + count * (end - spans[begin][0]) + PASS_OVERHEAD
            if cost < lowest_cost[stop]:
                lowest_cost[stop] = cost
                group_begin[stop] = begin
    groups: list[list[int]] = []
    stop = len(spans)
    while stop:
        groups.append(list(range(group_begin[stop], stop)))
        stop = group_begin[stop]
    return groups[::-1]
