"""What to compare an ablation with: each of its nodes alone, and random sets of the same size.

A drop of the metric says little by itself, because taking any few heads out of a small model hurts.
So as many other heads and MLPs, drawn at random, are ablated too.

    from discovery import load_model, load_task
    from discovery.methods.controls import compare_with_controls
    model = load_model("bundled"); task = load_task("ioi", model)
    compare_with_controls(model, task, ["a3.h0"], controls=10).controls
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

from discovery.backends.base import Backend
from discovery.engine import Engine, Meter
from discovery.engine.cost import CostTimer, MeasurementCost
from discovery.methods.ablation import NodeSet, SetMetric, parse_nodes
from discovery.progress import ProgressCallback
from discovery.sites import Ablation, MetricName, Node
from discovery.tasks.task import Task

MAX_DRAWS_PER_CONTROL = 50  # so many draws are tried, those that repeat a set included
METRIC_TIE = 1e-9  # changes of the metric that differ by less are equally large


@dataclass(frozen=True, kw_only=True)
class ControlComparison:
    """The mean metrics to compare an ablation with.

    Attributes:
        per_node: each node of the set, in forward order, with the mean metric if only it is
            ablated. Empty if this was not asked for.
        controls: the mean metric with each random set ablated: as many other heads and other MLPs.
            If there are too few others, the sets may share nodes with the set itself.
        n_possible: how many such sets there are.
        as_large: how many controls changed the metric at least as much as the set itself.
        cost: the work and the time that it took.
    """

    per_node: tuple[tuple[str, float], ...]
    controls: tuple[float, ...]
    n_possible: int
    as_large: int
    cost: MeasurementCost


def compare_with_controls(
    model: Backend,
    task: Task,
    nodes: Sequence[str | Node],
    *,
    ablation: Ablation = "resample",
    metric: MetricName | None = None,
    per_node: bool = True,
    controls: int = 20,
    seed: int = 0,
    memory: int | None = None,
    progress: ProgressCallback | None = None,
    engine: Engine | None = None,
) -> ControlComparison:
    """Ablate each node of a set alone, and random sets with as many heads and MLPs.

    Args:
        model: the model.
        task: the pairs; all of them are measured.
        nodes: the set, as in `ablate_heads`.
        ablation: resample, mean or zero.
        metric: what is measured; the task's own by default.
        per_node: whether to ablate each node alone too.
        controls: how many random sets are drawn; fewer if there are not so many.
        seed: of the random sets.
        memory: bytes that caches and batches may take; 60% of the free memory by default.
        progress: a function that hears how far the measurement is.
        engine: a prepared engine of the same model and task, whose caches are reused.

    Raises:
        SiteError: if the model lacks a node.
        MeasurementError: if the ablation or the metric is unknown.
        BudgetError: if the engine's meter has a budget that does not suffice.
    """
    began = time.monotonic()
    ablated = parse_nodes(model, nodes)
    engine = engine or Engine(
        model, task, metric=metric, memory=memory, meter=Meter(progress=progress)
    )
    timer = CostTimer(engine.meter, began)
    set_metric = SetMetric(engine, ablation)
    single_nodes = sorted(ablated) if per_node else []
    control_sets, n_possible = _draw_controls(model, ablated, controls, seed)
    sets = [ablated, frozenset(), *[frozenset({node}) for node in single_nodes], *control_sets]
    metrics = set_metric([set_metric.everything - nodes for nodes in sets], "controls")
    mean_metric, clean, *other_means = [float(row.double().mean()) for row in metrics]
    node_means = other_means[: len(single_nodes)]
    control_means = tuple(other_means[len(single_nodes) :])
    change = abs(mean_metric - clean)
    return ControlComparison(
        per_node=tuple(zip(map(str, single_nodes), node_means, strict=True)),
        controls=control_means,
        n_possible=n_possible,
        as_large=sum(abs(mean - clean) >= change - METRIC_TIE for mean in control_means),
        cost=timer.cost,
    )


def _draw_controls(
    model: Backend, ablated: NodeSet, count: int, seed: int
) -> tuple[list[NodeSet], int]:
    """Draw distinct sets with as many heads and MLPs, and count how many there are.

    They are drawn from the other nodes if there are enough of them, and from all nodes if not.
    """
    n_heads = sum(node.kind == "attention_head" for node in ablated)
    n_mlps = len(ablated) - n_heads
    everything = frozenset(model.info.nodes())
    heads, mlps, n_possible = _nodes_to_draw_from(everything - ablated, ablated, n_heads, n_mlps)
    if n_possible <= 0:
        heads, mlps, n_possible = _nodes_to_draw_from(everything, ablated, n_heads, n_mlps)
    rng = random.Random(f"controls-{seed}")
    control_sets: dict[NodeSet, None] = {ablated: None}  # so that the set itself is never drawn
    for _ in range(MAX_DRAWS_PER_CONTROL * count):
        if len(control_sets) > min(count, n_possible):
            break
        control_sets.setdefault(frozenset(rng.sample(heads, n_heads) + rng.sample(mlps, n_mlps)))
    return list(control_sets)[1:], n_possible


def _nodes_to_draw_from(
    nodes: NodeSet, ablated: NodeSet, n_heads: int, n_mlps: int
) -> tuple[list[Node], list[Node], int]:
    """List the heads and the MLPs to draw from, and count the sets other than the ablated one."""
    heads = sorted(node for node in nodes if node.kind == "attention_head")
    mlps = sorted(node for node in nodes if node.kind == "mlp")
    n_sets = comb(len(heads), n_heads) * comb(len(mlps), n_mlps)
    return heads, mlps, n_sets - (ablated <= nodes)
