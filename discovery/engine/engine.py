"""One model and one task, made ready for any number of measurements.

The engine decides how many pairs are cached together, keeps what was computed once (cached runs, means), and counts. Peak memory
is bounded by `memory` whatever the number of pairs: where the caches of all pairs do not fit in half of it, pairs are
taken block by block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend
from discovery.backends.hardware.memory import read_free_memory, trim_heap
from discovery.engine.block import Block
from discovery.engine.cost import Meter
from discovery.engine.memory import BATCH_PERCENT, CACHE_PERCENT, HeapTrimmer, pair_bytes
from discovery.engine.prompts import Prompts, Side
from discovery.errors import MeasurementError, MemoryLimitError
from discovery.interventions import MeanReference, ReferencePlan, plan_reference
from discovery.progress import ProgressCallback
from discovery.sites import Ablation, MetricName, Site, SiteName
from discovery.tasks.task import Task

FREE_MEMORY_SHARE = 0.6


class Engine:
    """Runs measurements of one task on one model.

    Attributes:
        metric: the task's own unless another was named.
        meter: what all of it costs.
        memory: bytes that caches and batches together may take.
    """

    def __init__(
        self,
        backend: Backend,
        task: Task,
        *,
        metric: MetricName | None = None,
        memory: int | None = None,
        meter: Meter | None = None,
    ) -> None:
        """Prepare.

        Raises:
            MeasurementError: for an unknown metric or a task without pairs.
            MemoryLimitError: where the memory does not hold one pair.
        """
        if metric is not None and metric not in get_args(MetricName):
            raise MeasurementError(
                f"metric {metric!r} is not known.", f"Allowed: {', '.join(get_args(MetricName))}."
            )
        if not task.pairs:
            raise MeasurementError(
                f"The task {task.name!r} has no pairs to measure.",
                "Give a task with at least one pair.",
            )
        self.backend, self.task = backend, task
        self.metric: MetricName = metric or task.metric
        self.meter = meter or Meter()
        self.memory = memory or int(FREE_MEMORY_SHARE * read_free_memory(backend.device))
        self._heap = HeapTrimmer(self.memory)
        self._extra = 0  # numbers a layer and position that sites beyond the shared ones take
        self._block_bounds = self._cut_blocks()
        self._current: tuple[int, Block] | None = None
        self._baselines: dict[Side, Tensor] = {}
        self._means: dict[Site, MeanReference] = {}
        self._mean_values: dict[Site, Tensor] = {}  # of the block that is kept
        self._plan: ReferencePlan | None = None

    def __len__(self) -> int:
        return len(self.task.pairs)

    def block_label(self, label: str, first: int, block: Block) -> str:
        """What is done on a block, for progress: which pairs, where they are not all."""
        count = len(block.prompts)
        return (
            label
            if count == len(self)
            else f"{label}, pairs {first + 1} to {first + count} of {len(self)}"
        )

    def reserve_memory(self, site: SiteName) -> None:
        """Take fewer pairs at a time where a site that no other measurement caches (q, k, v, pattern) needs the room.

        Raises:
            MemoryLimitError: where the memory does not hold one pair.
        """
        info, width = self.backend.info, max(len(pair.clean) for pair in self.task.pairs)
        heads = {
            "q": info.n_heads * info.d_head,
            "k": info.n_kv_heads * info.d_head,
            "v": info.n_kv_heads * info.d_head,
        }
        needed = info.n_heads * width if site == "pattern" else heads.get(site, 0)
        if needed > self._extra:
            self._extra = needed
            bounds = self._cut_blocks()
            if bounds != self._block_bounds:
                self._block_bounds, self._current = bounds, None
                self._mean_values.clear()

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """Each block of pairs, with the number of its first pair."""
        for first, last in self._block_bounds:
            if self._current is None or self._current[0] != first:
                if self._current is not None:
                    self._current = (
                        None  # frees the earlier block's caches before the next are made
                    )
                    self._mean_values.clear()
                    trim_heap()
                prompts = Prompts.of(self.task.pairs[first:last], self.backend.device)
                self._current = (
                    first,
                    Block(
                        backend=self.backend,
                        prompts=prompts,
                        meter=self.meter,
                        memory=self.memory * BATCH_PERCENT // 100,
                        heap=self._heap,
                        metric=self.metric,
                    ),
                )
            yield self._current

    def baseline(self, side: Side) -> Float[Tensor, "pair"]:
        """The metric of every pair's unchanged prompt; computed once, since with many blocks it takes a pass over all of them."""
        if side not in self._baselines:
            self._baselines[side] = torch.cat([block.baseline(side) for _, block in self.blocks()])
        return self._baselines[side]

    @property
    def reference_plan(self) -> ReferencePlan:
        """What means are taken over."""
        if self._plan is None:
            self._plan = plan_reference(self.task.pairs)
        return self._plan

    def reference_values(
        self, ablation: Ablation, first: int, block: Block, site: Site
    ) -> Float[Tensor, "pair pos ..."]:
        """What an ablation puts at a site, for the pairs of a block."""
        if ablation == "zero":
            info = self.backend.info
            shape = (info.n_heads, info.d_head) if site.kind == "z" else (info.d_model,)
            return torch.zeros(
                len(block.prompts),
                block.prompts.width,
                *shape,
                dtype=getattr(torch, info.dtype),
                device=self.backend.device,
            )
        corrupted = block.activation("corrupted", site)
        if ablation == "resample":
            return corrupted
        if site not in self._mean_values:
            self._mean_values[site] = self._means[site].values(first, corrupted)
        return self._mean_values[site]

    def prepare_means(self, sites: Sequence[Site]) -> None:
        """Sum the sites over every pair's corrupted run, where that has not been done."""
        missing = [site for site in sites if site not in self._means]
        if not missing:
            return
        made = {site: MeanReference(self.reference_plan) for site in missing}
        for first, block in self.blocks():
            block.load("corrupted", missing)
            for site, mean in made.items():
                mean.add(first, block.activation("corrupted", site))
        self._means.update(made)

    def _cut_blocks(self) -> list[tuple[int, int]]:
        pairs = self.task.pairs
        width = max(len(pair.clean) for pair in pairs)
        one = pair_bytes(self.backend.info, width, self._extra)
        count = self.memory * CACHE_PERCENT // (100 * one)
        if count < 1:
            raise MemoryLimitError(
                f"A memory limit of {self.memory:,} bytes does not hold the cached runs of one pair of {width} tokens "
                f"({-(-100 * one // CACHE_PERCENT):,} needed).",
                "Raise the memory limit, or shorten the prompts.",
            )
        return [(first, min(first + count, len(pairs))) for first in range(0, len(pairs), count)]


def engine_for(
    engine: Engine | None,
    model: Backend,
    task: Task,
    metric: MetricName | None,
    memory: int | None,
    progress: ProgressCallback | None,
) -> Engine:
    """The engine that a caller gave, or a new one.

    Raises:
        MeasurementError: where another metric is asked for than the given engine's.
    """
    if engine is None:
        return Engine(model, task, metric=metric, memory=memory, meter=Meter(progress=progress))
    if metric is not None and metric != engine.metric:
        raise MeasurementError(
            f"metric {metric!r} is asked for, and the engine given measures {engine.metric!r}.",
            "Leave out one of the two.",
        )
    return engine
