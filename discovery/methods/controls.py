"""What an ablation is to be held against: each of its nodes alone, and random sets of the same size.

A drop of the metric says little by itself: taking any few heads out of a small model hurts. So the same number of other heads and
MLPs, drawn at random, is ablated too.

    from discovery import load_model, load_task
    from discovery.methods.controls import contrast
    model = load_model("bundled"); task = load_task("ioi", model)
    contrast(model, task, ["a3.h0"], controls=10).controls
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

from discovery.backends.base import Backend
from discovery.engine import Engine, Meter
from discovery.engine.cost import MeasurementCost
from discovery.methods.ablation import NodeSet, SetMetric, parse_nodes
from discovery.progress import ProgressCallback
from discovery.sites import Ablation, MetricName, Node
from discovery.tasks.task import Task

MAX_DRAWS_PER_CONTROL = 50  # draws for each control that is wanted


@dataclass(frozen=True)
class ControlComparison:
    """Mean metrics beside which an ablation's is read.

    Attributes:
        per_node: with only this node ablated, node by node in forward order.
        controls: with a random set of as many other heads and other MLPs ablated (where there are too few others, of any but this set).
        n_possible: how many such sets there are.
        as_large: how many controls changed the metric at least as much as the set itself.
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
    each: bool = True,
    controls: int = 20,
    seed: int = 0,
    memory: int | None = None,
    progress: ProgressCallback | None = None,
    engine: Engine | None = None,
) -> ControlComparison:
    """Ablate each node alone, and random sets of the same make-up.

    Args:
        each: also ablate each node alone.
        controls: how many random sets; fewer where there are not so many.

    Raises:
        SiteError: for a node this model lacks.
    """
    began = time.monotonic()
    chosen = parse_nodes(model, nodes)
    engine = engine or Engine(
        model, task, metric=metric, memory=memory, meter=Meter(progress=progress)
    )
    before = engine.meter.spent
    sets = SetMetric(engine, ablation)
    singles = sorted(chosen) if each else []
    drawn, possible = _draw_controls(model, chosen, controls, seed)
    ablated = [chosen, frozenset(), *[frozenset({node}) for node in singles], *drawn]
    means = [
        float(row.double().mean())
        for row in sets([sets.everything - nodes for nodes in ablated], "controls")
    ]
    own, clean, rest = means[0], means[1], means[2:]
    others = tuple(rest[len(singles) :])
    as_large = sum(abs(other - clean) >= abs(own - clean) - 1e-9 for other in others)
    per_node = tuple(
        (str(node), value) for node, value in zip(singles, rest[: len(singles)], strict=True)
    )
    return ControlComparison(
        per_node,
        others,
        possible,
        as_large,
        MeasurementCost(engine.meter.spent - before, time.monotonic() - began),
    )


def _draw_controls(
    model: Backend, chosen: NodeSet, count: int, seed: int
) -> tuple[list[NodeSet], int]:
    """Distinct sets with as many heads and MLPs, of other nodes where there are enough, and how many there are."""
    n_heads = sum(node.kind == "attention_head" for node in chosen)
    n_mlps = len(chosen) - n_heads
    everything = frozenset(model.info.nodes())
    heads, mlps, possible = _nodes_to_draw_from(everything - chosen, chosen, n_heads, n_mlps)
    if possible <= 0:
        heads, mlps, possible = _nodes_to_draw_from(everything, chosen, n_heads, n_mlps)
    rng, found = random.Random(f"controls-{seed}"), dict.fromkeys([chosen])
    for _ in range(MAX_DRAWS_PER_CONTROL * count):
        if len(found) > min(count, possible):
            break
        found.setdefault(frozenset(rng.sample(heads, n_heads) + rng.sample(mlps, n_mlps)))
    return list(found)[1:], possible


def _nodes_to_draw_from(
    nodes: NodeSet, chosen: NodeSet, n_heads: int, n_mlps: int
) -> tuple[list[Node], list[Node], int]:
    """The heads and the MLPs to draw from, and how many sets other than the chosen they allow."""
    heads, mlps = (
        sorted(node for node in nodes if node.kind == kind) for kind in ("attention_head", "mlp")
    )
    return heads, mlps, comb(len(heads), n_heads) * comb(len(mlps), n_mlps) - (chosen <= nodes)
