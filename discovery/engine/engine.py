"""One model and one task, made ready for any number of measurements.

The engine decides how many pairs are cached together, keeps what was computed once (cached runs,
baselines, means), and counts the work. Peak memory is bounded by `memory` whatever the number of
pairs: if the caches of all pairs do not fit in `CACHE_PERCENT` of it, the pairs are taken block by
block.
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
from discovery.engine.memory import (
    BATCH_PERCENT,
    CACHE_PERCENT,
    FREE_MEMORY_SHARE,
    HeapTrimmer,
    pair_bytes,
)
from discovery.engine.prompts import Prompts, Side
from discovery.engine.reference_means import BlockMeans, ReferenceMeans
from discovery.engine.reference_plan import ReferencePlan
from discovery.errors import MeasurementError, MemoryLimitError, require_choice
from discovery.graph import RULES_VERSION, RulesVersion
from discovery.progress import ProgressCallback
from discovery.sites import Ablation, MetricName, Site, SiteName
from discovery.tasks.task import Task, list_own_corrupted


class Engine:
    """Runs measurements of one task on one model.

    Attributes:
        backend: the model.
        task: the pairs.
        metric: what is measured; the task's own metric unless another was named.
        meter: counts what all measurements cost.
        rules: the version of the evaluation rules that means follow.
        memory: the bytes that caches and batches together may take.
    """

    def __init__(
        self,
        backend: Backend,
        task: Task,
        *,
        metric: MetricName | None = None,
        memory: int | None = None,
        meter: Meter | None = None,
        rules: RulesVersion = RULES_VERSION,
        reference: ReferenceMeans | None = None,
    ) -> None:
        """Prepare to measure a task.

        Args:
            backend: the model.
            task: the pairs.
            metric: what to measure; None means the task's own metric.
            memory: the bytes that caches and batches may take; None means a share of what is free.
            meter: counts the work; None means a new meter.
            rules: the version of the evaluation rules that means follow.
            reference: the means of the same model and task, if other engines share them.

        Raises:
            MeasurementError: if the metric is unknown or the task has no pairs.
            MemoryLimitError: if the memory does not hold one pair.
        """
        if metric is not None:
            require_choice("metric", metric, get_args(MetricName))
        if not task.pairs:
            raise MeasurementError(
                f"The task {task.name!r} has no pairs to measure.",
                "Give a task with at least one pair.",
            )
        self.backend = backend
        self.task = task
        self.metric: MetricName = metric or task.metric
        self.meter = meter or Meter()
        self.memory = memory or int(FREE_MEMORY_SHARE * read_free_memory(backend.device))
        self._heap = HeapTrimmer(self.memory)
        # Numbers for each layer and position that sites beside the shared ones take.
        self._extra = 0
        self._block_bounds = self._cut_blocks()
        self._current: tuple[int, Block] | None = None
        self._baselines: dict[Side, Tensor] = {}
        self.rules: RulesVersion = rules
        self._reference = reference
        self._plan: ReferencePlan | None = None
        self._plan_version = 0
        # What replaces the outputs of the current block's pairs, for each half of the prompts.
        self._block_means: dict[int | None, BlockMeans] = {}
        self._mean_values: dict[tuple[Site, int | None], Tensor] = {}

    def __len__(self) -> int:
        return len(self.task.pairs)

    def block_label(self, label: str, first: int, block: Block) -> str:
        """Return the name of a step on a block; it says which pairs, if they are not all.

        Args:
            label: the name of the step.
            first: the number of the block's first pair.
            block: the block.
        """
        count = len(block.prompts)
        if count == len(self):
            return label
        return f"{label}, pairs {first + 1} to {first + count} of {len(self)}"

    def reserve_memory(self, site: SiteName) -> None:
        """Take fewer pairs at a time if a site needs more memory than the shared ones.

        These are q, k, v and pattern, which no other measurement caches.

        Raises:
            MemoryLimitError: if the memory does not hold one pair.
        """
        info = self.backend.info
        width = max(len(pair.clean) for pair in self.task.pairs)
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
                self._block_bounds = bounds
                self._current = None
                self._forget_block_means()

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """Yield each block of pairs, with the number of its first pair.

        One block is kept at a time, and reused if it is the next one asked for.
        """
        for first, end in self._block_bounds:
            if self._current is None or self._current[0] != first:
                if self._current is not None:
                    # The earlier block's caches are freed before those of the next are made.
                    self._current = None
                    self._forget_block_means()
                    trim_heap()
                block = Block(
                    backend=self.backend,
                    prompts=Prompts.of(self.task.pairs[first:end], self.backend.device),
                    meter=self.meter,
                    memory=self.memory * BATCH_PERCENT // 100,
                    heap=self._heap,
                    metric=self.metric,
                )
                self._current = (first, block)
            yield self._current

    def baseline(self, side: Side) -> Float[Tensor, "pair"]:
        """Return the metric of every pair's unchanged prompt.

        It is computed once, because with several blocks it takes a pass over all pairs.
        """
        if side not in self._baselines:
            self._baselines[side] = torch.cat([block.baseline(side) for _, block in self.blocks()])
        return self._baselines[side]

    @property
    def reference(self) -> ReferenceMeans:
        """The means of mean ablation.

        Under version 1 of the rules they are taken over the corrupted prompts of these pairs.
        """
        if self._reference is None:
            self._reference = new_reference(
                self.backend, self.task, meter=self.meter, memory=self.memory, rules=self.rules
            )
        return self._reference

    @property
    def reference_plan(self) -> ReferencePlan:
        """The prompts and positions that means are taken over.

        It is made again, and means are computed again, if there are more prompts than before.
        """
        if self._plan is None or self._plan_version != self.reference.version:
            self._forget_block_means()
            self._plan = self.reference.plan(self.task.pairs)
            self._plan_version = self.reference.version
        return self._plan

    def _forget_block_means(self) -> None:
        self._block_means.clear()
        self._mean_values.clear()

    def reference_values(
        self, ablation: Ablation, first: int, block: Block, site: Site, half: int | None = None
    ) -> Float[Tensor, "pair pos ..."]:
        """Return what an ablation puts at a site, for the pairs of a block.

        Args:
            ablation: zero, resample (the pair's own corrupted run) or mean.
            first: the number of the block's first pair.
            block: the block.
            site: the site. For mean ablation, `prepare_means` must have been called with it.
            half: for mean ablation, the half of the reference prompts whose means are used; None
                means all of them.
        """
        info = self.backend.info
        if ablation == "resample":
            return block.activation("corrupted", site)
        count = len(block.prompts)
        parts = (info.n_heads, info.d_head) if site.kind == "z" else (info.d_model,)
        dtype = getattr(torch, info.dtype)
        if ablation == "zero":
            return torch.zeros(
                count, block.prompts.width, *parts, dtype=dtype, device=self.backend.device
            )
        plan = self.reference_plan
        if half not in self._block_means:
            self._block_means[half] = BlockMeans(
                self.reference, plan, range(first, first + count), half
            )
        if (site, half) not in self._mean_values:
            means = self._block_means[half]
            own = block.activation("corrupted", site) if means.needs_own_values else None
            values = means.values(site, own).to(dtype)
            self._mean_values[site, half] = values.reshape(count, block.prompts.width, *parts)
        return self._mean_values[site, half]

    def prepare_means(self, sites: Sequence[Site]) -> None:
        """Make sure that these sites have been summed over the reference prompts.

        Raises:
            BudgetError: if the meter's budget does not suffice.
        """
        self.reference.prepare(self.reference_plan, sites)

    def _cut_blocks(self) -> list[tuple[int, int]]:
        """Return the first pair of each block, and the pair after its last."""
        pairs = self.task.pairs
        width = max(len(pair.clean) for pair in pairs)
        needed = pair_bytes(self.backend.info, width, self._extra)
        count = self.memory * CACHE_PERCENT // (100 * needed)
        if count < 1:
            limit = -(-100 * needed // CACHE_PERCENT)
            raise MemoryLimitError(
                f"A memory limit of {self.memory:,} bytes does not hold the cached runs of one "
                f"pair of {width} tokens ({limit:,} needed).",
                "Raise the memory limit, or shorten the prompts.",
            )
        return [(first, min(first + count, len(pairs))) for first in range(0, len(pairs), count)]


def new_reference(
    backend: Backend,
    task: Task,
    *,
    meter: Meter,
    memory: int | None = None,
    rules: RulesVersion = RULES_VERSION,
) -> ReferenceMeans:
    """Return the means of mean ablation of a task, which engines of its splits can share.

    Args:
        backend: the model.
        task: the task. Version 1 of the rules takes means over the corrupted prompts of the very
            pairs that are measured, so engines of different splits cannot share them then.
        meter: counts the work.
        memory: the bytes that caches and batches may take; None means a share of what is free.
        rules: the version of the evaluation rules.
    """
    source = task.reference_source if rules > 1 else list_own_corrupted(task)
    return ReferenceMeans(backend, source, meter=meter, memory=memory, rules=rules)


def engine_for(
    engine: Engine | None,
    model: Backend,
    task: Task,
    metric: MetricName | None,
    memory: int | None,
    progress: ProgressCallback | None,
) -> Engine:
    """Return the engine that a caller gave, or a new one.

    Args:
        engine: the engine that a caller gave; None means a new one with the other arguments.

    Raises:
        MeasurementError: if an engine is given and another metric than its own is asked for.
    """
    if engine is None:
        return Engine(model, task, metric=metric, memory=memory, meter=Meter(progress=progress))
    if metric is not None and metric != engine.metric:
        raise MeasurementError(
            f"The metric {metric!r} is asked for, and the given engine measures {engine.metric!r}.",
            "Leave out one of the two.",
        )
    return engine
