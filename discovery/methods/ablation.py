"""Ablation of sets: m(S), the metric of the clean prompt with every node outside S replaced.

Nodes are replaced at all positions. Each node of S is recomputed from what it then reads, and norms
are never frozen; embed, the attention output bias b_O, norms and unembedding are never ablated. A
node is replaced by its value in the pair's own corrupted run (resample), by a mean over other
corrupted prompts (mean; see `engine.reference_plan`), or by zero. Everything that the
evaluation asks of a circuit is m(S) of some sets, so all of them go through one batched function
that remembers its results, `SetMetric`.

    from discovery import load_model, load_task, ablate_heads
    model = load_model("bundled"); task = load_task("ioi", model)
    ablate_heads(model, task, ["a3.h0", "m2"], ablation="mean").metric_ablated
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from discovery.backends.base import Backend
from discovery.engine import Block, Engine, Rows, Window, engine_for
from discovery.engine.cost import CostTimer, MeasurementCost
from discovery.errors import SiteError, require_choice
from discovery.graph import Reference
from discovery.interventions import Edit
from discovery.methods.shared_start import (
    SharedRun,
    choose_shared_set,
    first_layer,
    start_from,
)
from discovery.methods.subject import TaskLike, resolve_task
from discovery.progress import ProgressCallback
from discovery.sites import Ablation, MetricName, Node, Site, Universe, output_site

NodeSet = frozenset[Node]
SHARED_MEMORY_SHARE = 0.25  # of the memory for batches, for the streams of a shared run


class SetMetric:
    """m(S) of any sets of nodes under one ablation; each set is measured once.

    Attributes:
        engine: the model and the pairs.
        ablation: resample, mean or zero.
        universe: the nodes that can be ablated, in forward order. Any other node is always kept.
        everything: the universe as a set.
        half: for mean ablation, the half of the reference prompts whose means are used; None means
            all of them.
    """

    def __init__(
        self,
        engine: Engine,
        ablation: Ablation,
        universe: Universe = "all",
        half: int | None = None,
    ) -> None:
        """Prepare to measure sets; nothing is run yet.

        Raises:
            MeasurementError: if the ablation is unknown.
        """
        require_choice("ablation", ablation, get_args(Ablation))
        self.engine = engine
        self.ablation = ablation
        self.half = half
        self.universe = engine.backend.info.nodes(universe)
        self.everything: NodeSet = frozenset(self.universe)
        self._on_all_pairs: dict[NodeSet, Tensor] = {}
        self._on_first_pairs: dict[NodeSet, Tensor] = {}

    def __call__(
        self, sets: Sequence[NodeSet], label: str = "ablation", pairs: int | None = None
    ) -> Float[Tensor, "set pair"]:
        """Measure the metric of each pair with only the nodes of a set kept, for several sets.

        Args:
            sets: the sets of nodes that are kept.
            label: names the work for progress and errors.
            pairs: measure only the first so many pairs.

        Raises:
            BudgetError: if the meter's budget does not suffice; nothing was run then.
        """
        node_sets = [frozenset(node_set & self.everything) for node_set in sets]
        new_sets = [
            node_set for node_set in dict.fromkeys(node_sets) if node_set not in self._on_all_pairs
        ]
        count = len(self.engine) if pairs is None else min(pairs, len(self.engine))
        by_measured: dict[int, list[NodeSet]] = defaultdict(list)
        for node_set in new_sets:
            by_measured[len(self._on_first_pairs.get(node_set, ()))].append(node_set)
        for measured, group in sorted(by_measured.items()):
            if measured < count:
                self._extend(group, measured, count, label)
        return torch.stack([self._first_pairs_of(node_set, count) for node_set in node_sets])

    def _extend(self, sets: Sequence[NodeSet], start: int, stop: int, label: str) -> None:
        """Measure sets on the pairs from `start` to `stop`; the earlier ones are known."""
        for node_set, values in zip(sets, self._measure(sets, label, start, stop), strict=True):
            if start:
                values = torch.cat([self._on_first_pairs[node_set], values])
            if stop == len(self.engine):
                self._on_all_pairs[node_set] = values
                self._on_first_pairs.pop(node_set, None)
            else:
                self._on_first_pairs[node_set] = values

    def _first_pairs_of(self, node_set: NodeSet, count: int) -> Float[Tensor, "pair"]:
        measured = self._on_all_pairs if node_set in self._on_all_pairs else self._on_first_pairs
        return measured[node_set][:count]

    def measurements(self) -> tuple[dict[NodeSet, Tensor], dict[NodeSet, Tensor]]:
        """Return the sets measured on all pairs, and those measured on the first pairs only."""
        return dict(self._on_all_pairs), dict(self._on_first_pairs)

    def restore(
        self, on_all_pairs: Mapping[NodeSet, Tensor], on_first_pairs: Mapping[NodeSet, Tensor]
    ) -> None:
        """Take over what an earlier session measured on the same pairs, or the first of them."""
        for node_set, values in (*on_first_pairs.items(), *on_all_pairs.items()):
            if len(values) == len(self.engine):
                self._on_all_pairs[node_set] = values
            else:
                self._on_first_pairs[node_set] = values

    def fill_cache(self) -> None:
        """Cache what any set needs, so that work counted afterwards is that of the sets alone."""
        sites = _sites(self.everything)
        self._prepare_means()
        for _, block in self.engine.blocks():
            block.load("corrupted", sites)
            block.baseline("clean")

    def is_measured(self, node_set: NodeSet) -> bool:
        """Whether this set has been measured on all pairs."""
        return frozenset(node_set & self.everything) in self._on_all_pairs

    def estimate(self, sets: Sequence[NodeSet]) -> float:
        """Return the forward-pass equivalents of these sets beyond the passes that are cached.

        Sets that have been measured already are counted too.
        """
        ablated_sets = self._ablated_sets(sets)
        return sum(
            self._estimate(first, block, ablated_sets, range(len(block.prompts)))
            for first, block in self.engine.blocks()
        )

    def _ablated_sets(self, sets: Sequence[NodeSet]) -> list[NodeSet]:
        """Return what is ablated for each set, once the means that this needs are prepared."""
        ablated_sets = [self.everything - node_set for node_set in sets]
        if any(ablated_sets):
            self._prepare_means()
        return ablated_sets

    def _prepare_means(self) -> None:
        """Prepare the means of every node, so that one pass over the reference prompts suffices."""
        if self.ablation == "mean":
            self.engine.prepare_means(_sites(self.everything))

    def _measure(
        self, sets: Sequence[NodeSet], label: str, start: int, stop: int
    ) -> Sequence[Float[Tensor, "pair"]]:
        """Measure sets on the pairs from `start` to `stop`."""
        ablated_sets = self._ablated_sets(sets)
        parts: list[Tensor] = []
        for first, block in self.engine.blocks():
            pairs = range(max(start - first, 0), min(stop - first, len(block.prompts)))
            if pairs:
                parts.append(self._measure_block(first, block, ablated_sets, label, pairs))
        return list(torch.cat(parts, 1))

    def _measure_block(
        self, first: int, block: Block, ablated_sets: Sequence[NodeSet], label: str, pairs: range
    ) -> Float[Tensor, "set pair"]:
        metric = block.baseline("clean")[pairs.start : pairs.stop].repeat(len(ablated_sets), 1)
        plans = [
            (part, *self._plan(first, block, ablated_sets, part))
            for part in self._cut_pairs(block, pairs)
        ]
        block.meter.begin(
            self.engine.block_label(label, first, block),
            sum(_plan_cost(block, jobs, shared) for _, jobs, shared in plans),
        )
        while plans:  # a plan is given up once it is done, and with it the streams that it holds
            part, jobs, _ = plans.pop(0)
            columns = slice(part.start - pairs.start, part.stop - pairs.start)
            for set_numbers, rows in jobs:
                values = block.measure(rows).reshape(len(set_numbers), len(part))
                metric[set_numbers, columns] = values
        return metric

    def _estimate(
        self, first: int, block: Block, ablated_sets: Sequence[NodeSet], pairs: range
    ) -> float:
        return sum(
            _plan_cost(block, *self._plan(first, block, ablated_sets, part))
            for part in self._cut_pairs(block, pairs)
        )

    def _cut_pairs(self, block: Block, pairs: range) -> list[range]:
        """Cut pairs into parts whose shared residual streams fit in memory."""
        info = self.engine.backend.info
        itemsize = torch.empty(0, dtype=getattr(torch, info.dtype)).element_size()
        of_one_pair = info.n_layers * block.prompts.width * info.d_model * itemsize
        size = max(1, int(SHARED_MEMORY_SHARE * block.memory) // of_one_pair)
        return [pairs[begin : begin + size] for begin in range(0, len(pairs), size)]

    def _plan(
        self, first: int, block: Block, ablated_sets: Sequence[NodeSet], pairs: range
    ) -> tuple[list[tuple[list[int], Rows]], SharedRun | None]:
        """Plan the runs of some sets on some pairs of a block.

        Returns:
            The numbers of the sets that start at the same place, with their rows; and the run whose
            residual streams some of them start from.
        """
        n_layers = self.engine.backend.info.n_layers
        shared_set = choose_shared_set(ablated_sets, n_layers)
        by_start: dict[tuple[bool, int], list[int]] = defaultdict(list)
        for number, nodes in enumerate(ablated_sets):
            if not nodes:
                continue
            alone = first_layer(nodes)
            together = 0 if shared_set is None else start_from(shared_set, nodes, n_layers)
            is_shared = alone < together < n_layers
            by_start[is_shared, together if is_shared else alone].append(number)
        layers = sorted(start for is_shared, start in by_start if is_shared)
        shared: SharedRun | None = None
        if shared_set is not None and layers:
            start = first_layer(shared_set)
            rows = self._rows(first, block, [shared_set], start, pairs)
            shared = SharedRun(
                ablated=shared_set,
                block=block,
                rows=rows,
                first_pair=pairs.start,
                layers=layers,
            )
        jobs = [
            (
                numbers,
                self._rows(
                    first,
                    block,
                    [ablated_sets[n] for n in numbers],
                    start,
                    pairs,
                    shared if is_shared else None,
                ),
            )
            for (is_shared, start), numbers in sorted(by_start.items())
        ]
        return jobs, shared

    def _rows(
        self,
        first: int,
        block: Block,
        ablated_sets: Sequence[NodeSet],
        start: int,
        pairs: range,
        shared: SharedRun | None = None,
    ) -> Rows:
        """Build the rows of these sets on some pairs of a block, set by set.

        They start at a layer of the clean run, or of the shared one.
        """
        device = block.prompts.length.device
        pair = torch.arange(pairs.start, pairs.stop, device=device).repeat(len(ablated_sets))
        set_number = torch.arange(len(ablated_sets), device=device).repeat_interleave(len(pairs))
        replacements = [
            (
                site,
                self.engine.reference_values(self.ablation, first, block, site, self.half),
                torch.tensor(self._find_ablated(site, ablated_sets), device=device),
            )
            for site in _sites(frozenset().union(*ablated_sets))
            if site.layer >= start
        ]

        def edits(window: Window) -> list[Edit]:
            sets = set_number[window.index]
            return [_edit(site, value, where[sets], window) for site, value, where in replacements]

        # The corrupted run is the clean run up to the first token that differs; other references
        # differ from the first position on.
        first_change = torch.zeros_like(pair)
        if self.ablation == "resample":
            first_change = block.prompts.first_difference[pair]
        residual = None if shared is None else partial(shared.stream, start)
        return Rows(
            base="clean",
            pair=pair,
            first=first_change,
            start=start,
            edits=edits,
            residual=residual,
        )

    def _find_ablated(self, site: Site, ablated_sets: Sequence[NodeSet]) -> list[list[bool]]:
        """Return, for each set, which heads of a site it ablates, or whether it ablates the MLP."""
        if site.kind == "mlp_out":
            return [[Node("mlp", site.layer) in nodes] for nodes in ablated_sets]
        heads = [
            Node("attention_head", site.layer, head)
            for head in range(self.engine.backend.info.n_heads)
        ]
        return [[head in nodes for head in heads] for nodes in ablated_sets]


def _plan_cost(
    block: Block, jobs: Sequence[tuple[list[int], Rows]], shared: SharedRun | None
) -> float:
    """Return the forward-pass equivalents of planned runs, with the run that they share."""
    of_jobs = sum(block.estimate(rows) for _, rows in jobs)
    return of_jobs + (shared.cost if shared is not None else 0.0)


def _edit(site: Site, value: Tensor, where: Bool[Tensor, "row head"], window: Window) -> Edit:
    """Replace a site at every position, in the heads marked by `where` ([row 1] for an MLP)."""
    shaped = where.unsqueeze(1) if site.kind == "z" else where  # [row 1 head] or [row 1]
    return Edit(site, value[:, window.first : window.end], shaped, index=window.pair)


def _sites(nodes: NodeSet) -> list[Site]:
    return sorted({output_site(node) for node in nodes})


@dataclass(frozen=True, kw_only=True)
class AblationResult:
    """What ablating a set of nodes does.

    Attributes:
        nodes: the ablated nodes, in forward order.
        ablation: resample, mean or zero.
        metric: what was measured.
        metric_clean: the mean over pairs with nothing ablated.
        metric_ablated: the mean over pairs with the nodes ablated.
        per_pair: the metric of each pair with the nodes ablated, [pair].
        per_pair_clean: the metric of each pair with nothing ablated, [pair].
        reference: what the nodes were replaced by.
        cost: the work and the time that it took.
    """

    nodes: tuple[str, ...]
    ablation: Ablation
    metric: MetricName
    metric_clean: float
    metric_ablated: float
    per_pair: Float[Tensor, "pair"]
    per_pair_clean: Float[Tensor, "pair"]
    reference: Reference
    cost: MeasurementCost


def parse_nodes(model: Backend, nodes: Iterable[str | Node]) -> NodeSet:
    """Read nodes by name and check them against the model.

    Raises:
        SiteError: if a name is no node of this model, such as that of a key-value head (a23.kv1).
    """
    if isinstance(nodes, str):
        raise SiteError(f"nodes is the text {nodes!r}, not a list.", f"Write [{nodes!r}].")
    return frozenset(model.info.parse(node) for node in nodes)


def describe_reference(engine: Engine, ablation: Ablation) -> Reference:
    """Describe what ablated nodes are replaced by, as the record says it."""
    if ablation == "mean":
        plan = engine.reference_plan
        return Reference(
            source=engine.reference.source.description,
            alignment=plan.alignment,
            size=plan.size,
        )
    if ablation == "zero":
        return Reference(source="zero", alignment="none", size=0)
    return Reference(source="the pair's own corrupted run", alignment="position", size=1)


def ablate_heads(
    model: Backend,
    task: TaskLike,
    nodes: Sequence[str | Node],
    *,
    ablation: Ablation = "resample",
    metric: MetricName | None = None,
    memory: int | None = None,
    progress: ProgressCallback | None = None,
    engine: Engine | None = None,
) -> AblationResult:
    """Ablate heads and MLPs together, at all positions, in the clean prompt of every pair.

    Args:
        model: the model.
        task: a task, all of whose pairs are measured, or what `load_task` accepts: a name, the path
            of a task file, or pairs.
        nodes: heads ("a9.h6"; "L9H6" and "9.6" are understood too) and MLPs ("m5").
        ablation: resample, mean or zero. Zero ablation depends on how the weights were processed
            when the model was loaded, so it enters no verdict.
        metric: what is measured; the task's own by default.
        memory: bytes that caches and batches may take; 60% of the free memory by default.
        progress: a function that hears how far the measurement is.
        engine: a prepared engine of the same model and task, whose caches are reused.

    Raises:
        SiteError: if the model lacks a node.
        MeasurementError: if the ablation or the metric is unknown.
        BudgetError: if the engine's meter has a budget that does not suffice.
    """
    began = time.monotonic()
    ablated_nodes = parse_nodes(model, nodes)
    loaded = resolve_task(task, model, seed=0, pairs=None)
    engine = engine_for(engine, model, loaded, metric, memory, progress)
    timer = CostTimer(engine.meter, began)
    set_metric = SetMetric(engine, ablation)
    clean, ablated = set_metric(
        [set_metric.everything, set_metric.everything - ablated_nodes], "ablation"
    )
    return AblationResult(
        nodes=tuple(str(node) for node in sorted(ablated_nodes)),
        ablation=ablation,
        metric=engine.metric,
        metric_clean=float(clean.double().mean()),
        metric_ablated=float(ablated.double().mean()),
        per_pair=ablated,
        per_pair_clean=clean,
        reference=describe_reference(engine, ablation),
        cost=timer.cost,
    )
