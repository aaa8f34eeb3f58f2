"""Ablation of sets: m(S), the metric of the clean prompt with every node outside S replaced.

Nodes are replaced at all positions. Each node of S is recomputed from what it then reads, and norms
are never frozen; embed, the attention output bias b_O, norms and unembedding are never ablated. A
node is replaced by its value in the pair's own corrupted run (resample), by a mean over other
corrupted prompts (mean; see `interventions.plan_reference`), or by zero. Everything that the
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
from typing import get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from discovery.backends.base import Backend
from discovery.engine import Block, Engine, Rows, Window, engine_for
from discovery.engine.cost import CostTimer, MeasurementCost
from discovery.errors import MeasurementError, SiteError
from discovery.graph import Reference
from discovery.interventions import Edit
from discovery.progress import ProgressCallback
from discovery.sites import Ablation, MetricName, Node, Site, Universe, output_site
from discovery.tasks.task import Task

NodeSet = frozenset[Node]


class SetMetric:
    """m(S) of any sets of nodes under one ablation; each set is measured once.

    Attributes:
        engine: the model and the pairs.
        ablation: resample, mean or zero.
        universe: the nodes that can be ablated, in forward order. Any other node is always kept.
        everything: the universe as a set.
    """

    def __init__(self, engine: Engine, ablation: Ablation, universe: Universe = "all") -> None:
        """Prepare to measure sets; nothing is run yet.

        Raises:
            MeasurementError: if the ablation is unknown.
        """
        if ablation not in get_args(Ablation):
            raise MeasurementError(
                f"ablation {ablation!r} is not known.", f"Allowed: {', '.join(get_args(Ablation))}."
            )
        self.engine = engine
        self.ablation = ablation
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
        kept_sets = [frozenset(kept & self.everything) for kept in sets]
        new_sets = [kept for kept in dict.fromkeys(kept_sets) if kept not in self._on_all_pairs]
        if pairs is None:
            self._on_all_pairs.update(zip(new_sets, self._measure(new_sets, label), strict=True))
            return torch.stack([self._on_all_pairs[kept] for kept in kept_sets])
        new_sets = [kept for kept in new_sets if len(self._on_first_pairs.get(kept, ())) < pairs]
        self._on_first_pairs.update(
            zip(new_sets, self._measure(new_sets, label, pairs), strict=True)
        )
        return torch.stack([self._first_pairs_of(kept, pairs) for kept in kept_sets])

    def _first_pairs_of(self, kept: NodeSet, pairs: int) -> Float[Tensor, "pair"]:
        measured = self._on_all_pairs if kept in self._on_all_pairs else self._on_first_pairs
        return measured[kept][:pairs]

    def measurements(self) -> tuple[dict[NodeSet, Tensor], dict[NodeSet, Tensor]]:
        """Return the sets measured on all pairs, and those measured on the first pairs only."""
        return dict(self._on_all_pairs), dict(self._on_first_pairs)

    def restore(
        self, on_all_pairs: Mapping[NodeSet, Tensor], on_first_pairs: Mapping[NodeSet, Tensor]
    ) -> None:
        """Take over what an earlier session measured on the same pairs."""
        self._on_all_pairs.update(on_all_pairs)
        self._on_first_pairs.update(on_first_pairs)

    def fill_cache(self) -> None:
        """Cache what any set needs, so that work counted afterwards is that of the sets alone."""
        sites = _sites(self.everything)
        if self.ablation == "mean":
            self.engine.prepare_means(sites)
        for _, block in self.engine.blocks():
            block.load("corrupted", sites)
            block.baseline("clean")

    def is_measured(self, kept: NodeSet) -> bool:
        """Whether this set has been measured on all pairs."""
        return frozenset(kept & self.everything) in self._on_all_pairs

    def estimate(self, sets: Sequence[NodeSet]) -> float:
        """Return the forward-pass equivalents of these sets beyond the passes that are cached.

        Sets that have been measured already are counted too.
        """
        ablated_sets = self._ablated_sets(sets)
        return sum(
            block.estimate(rows)
            for first, block in self.engine.blocks()
            for _, rows in self._jobs(first, block, ablated_sets, len(block.prompts))
        )

    def _ablated_sets(self, sets: Sequence[NodeSet]) -> list[NodeSet]:
        """Return what is ablated for each set, once the means that this needs are prepared."""
        ablated_sets = [self.everything - kept for kept in sets]
        if self.ablation == "mean":
            self.engine.prepare_means(_sites(frozenset().union(*ablated_sets)))
        return ablated_sets

    def _measure(
        self, sets: Sequence[NodeSet], label: str, pairs: int | None = None
    ) -> Sequence[Float[Tensor, "pair"]]:
        if not sets:
            return ()
        ablated_sets = self._ablated_sets(sets)
        parts: list[Tensor] = []
        for first, block in self.engine.blocks():
            count = len(block.prompts)
            if pairs is not None:
                count = max(0, min(count, pairs - first))
            if count:
                parts.append(self._measure_block(first, block, ablated_sets, label, count))
        return list(torch.cat(parts, 1))

    def _measure_block(
        self, first: int, block: Block, ablated_sets: Sequence[NodeSet], label: str, count: int
    ) -> Float[Tensor, "set pair"]:
        metric = block.baseline("clean")[:count].repeat(len(ablated_sets), 1)
        jobs = self._jobs(first, block, ablated_sets, count)
        block.meter.begin(
            self.engine.block_label(label, first, block),
            sum(block.estimate(rows) for _, rows in jobs),
        )
        for set_numbers, rows in jobs:
            metric[set_numbers] = block.measure(rows).reshape(len(set_numbers), count)
        return metric

    def _jobs(
        self, first: int, block: Block, ablated_sets: Sequence[NodeSet], count: int
    ) -> list[tuple[list[int], Rows]]:
        """Group the sets by the first layer that they touch: the numbers of the sets, and rows."""
        by_start: dict[int, list[int]] = defaultdict(list)
        for number, nodes in enumerate(ablated_sets):
            if nodes:
                by_start[min(node.layer for node in nodes if node.layer is not None)].append(number)
        return [
            (numbers, self._rows(first, block, [ablated_sets[n] for n in numbers], start, count))
            for start, numbers in sorted(by_start.items())
        ]

    def _rows(
        self, first: int, block: Block, ablated_sets: Sequence[NodeSet], start: int, count: int
    ) -> Rows:
        """Build the rows of these sets on the first `count` pairs of a block, set by set."""
        device = block.prompts.length.device
        pair = torch.arange(count, device=device).repeat(len(ablated_sets))
        set_number = torch.arange(len(ablated_sets), device=device).repeat_interleave(count)
        replacements = [
            (
                site,
                self.engine.reference_values(self.ablation, first, block, site),
                torch.tensor(self._find_ablated(site, ablated_sets), device=device),
            )
            for site in _sites(frozenset().union(*ablated_sets))
        ]

        def edits(window: Window) -> list[Edit]:
            sets = set_number[window.index]
            return [_edit(site, value, where[sets], window) for site, value, where in replacements]

        # The corrupted run is the clean run up to the first token that differs; other references
        # differ from the first position on.
        first_change = torch.zeros_like(pair)
        if self.ablation == "resample":
            first_change = block.prompts.first_difference[pair]
        return Rows(base="clean", pair=pair, first=first_change, start=start, edits=edits)

    def _find_ablated(self, site: Site, ablated_sets: Sequence[NodeSet]) -> list[list[bool]]:
        """Return, for each set, which heads of a site it ablates, or whether it ablates the MLP."""
        if site.kind == "mlp_out":
            return [[Node("mlp", site.layer) in nodes] for nodes in ablated_sets]
        heads = [
            Node("attention_head", site.layer, head)
            for head in range(self.engine.backend.info.n_heads)
        ]
        return [[head in nodes for head in heads] for nodes in ablated_sets]


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
            source="corrupted prompts of the same split, the pair itself left out",
            alignment=plan.alignment,
            size=plan.size,
        )
    if ablation == "zero":
        return Reference(source="zero", alignment="none", size=0)
    return Reference(source="the pair's own corrupted run", alignment="position", size=1)


def ablate_heads(
    model: Backend,
    task: Task,
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
        task: the pairs; all of them are measured.
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
    engine = engine_for(engine, model, task, metric, memory, progress)
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
