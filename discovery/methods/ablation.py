"""Ablation of sets: m(S), the clean prompts with every node outside S replaced at all positions.

Each node of S is recomputed from what it then reads; norms are never frozen; embed, the attention output bias b_O, norms and
unembedding are never ablated. Nodes are replaced by their value in the pair's own corrupted run (resample), by a mean over
other corrupted prompts (mean; see `interventions.plan_reference`), or by zero. Everything the evaluation asks of a circuit is
m(S) for some sets, so all of them go through one batched, memoised function, `SetMetric`.

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
from discovery.engine.cost import MeasurementCost
from discovery.errors import MeasurementError, SiteError
from discovery.interventions import Edit
from discovery.progress import ProgressCallback
from discovery.sites import Ablation, MetricName, Node, Site, Universe, output_site
from discovery.tasks.task import Task

NodeSet = frozenset[Node]


class SetMetric:
    """m(S) of any sets of nodes under one ablation, each computed once.

    Attributes:
        universe: the nodes that can be ablated, in forward order; a node outside it is always kept.
    """

    def __init__(self, engine: Engine, ablation: Ablation, universe: Universe = "all") -> None:
        """Prepare.

        Raises:
            MeasurementError: for an unknown ablation.
        """
        if ablation not in get_args(Ablation):
            raise MeasurementError(
                f"ablation {ablation!r} is not known.", f"Allowed: {', '.join(get_args(Ablation))}."
            )
        self.engine, self.ablation = engine, ablation
        self.universe = engine.backend.info.nodes(universe)
        self.everything: NodeSet = frozenset(self.universe)
        self._on_all_pairs: dict[NodeSet, Tensor] = {}
        self._on_first_pairs: dict[NodeSet, Tensor] = {}  # of the first pairs only

    def __call__(
        self, sets: Sequence[NodeSet], label: str = "ablation", pairs: int | None = None
    ) -> Float[Tensor, "set pair"]:
        """The metric of each pair with only these nodes kept.

        Args:
            pairs: only the first so many pairs.

        Raises:
            BudgetError: where the meter's budget does not reach; nothing was run then.
        """
        wanted = [frozenset(kept & self.everything) for kept in sets]
        fresh = [kept for kept in dict.fromkeys(wanted) if kept not in self._on_all_pairs]
        if pairs is not None:
            fresh = [kept for kept in fresh if len(self._on_first_pairs.get(kept, ())) < pairs]
            self._on_first_pairs.update(zip(fresh, self._measure(fresh, label, pairs), strict=True))
            whole, parts = self._on_all_pairs, self._on_first_pairs
            measured = [whole[kept] if kept in whole else parts[kept] for kept in wanted]
            return torch.stack([values[:pairs] for values in measured])
        self._on_all_pairs.update(zip(fresh, self._measure(fresh, label), strict=True))
        return torch.stack([self._on_all_pairs[kept] for kept in wanted])

    def measurements(self) -> tuple[dict[NodeSet, Tensor], dict[NodeSet, Tensor]]:
        """Every set measured so far: on all pairs, and on the first so many only."""
        return dict(self._on_all_pairs), dict(self._on_first_pairs)

    def restore(self, whole: Mapping[NodeSet, Tensor], parts: Mapping[NodeSet, Tensor]) -> None:
        """Take over what an earlier session measured on the same pairs."""
        self._on_all_pairs.update(whole)
        self._on_first_pairs.update(parts)

    def fill_cache(self) -> None:
        """Cache what any set needs, so that what is counted afterwards is the sets' own work."""
        sites = _sites(self.everything)
        if self.ablation == "mean":
            self.engine.prepare_means(sites)
        for _, block in self.engine.blocks():
            block.load("corrupted", sites)
            block.baseline("clean")

    def is_measured(self, kept: NodeSet) -> bool:
        """Whether this set has been measured."""
        return frozenset(kept & self.everything) in self._on_all_pairs

    def _measure(
        self, sets: Sequence[NodeSet], label: str, pairs: int | None = None
    ) -> Sequence[Tensor]:
        if not sets:
            return ()
        ablated = [self.everything - kept for kept in sets]
        if self.ablation == "mean":
            self.engine.prepare_means(_sites(frozenset().union(*ablated)))
        out: list[Tensor] = []
        for first, block in self.engine.blocks():
            count = (
                len(block.prompts)
                if pairs is None
                else max(0, min(len(block.prompts), pairs - first))
            )
            if count:
                out.append(self._measure_block(first, block, ablated, label, count))
        return list(torch.cat(out, 1))

    def estimate(self, sets: Sequence[NodeSet]) -> float:
        """Forward-pass equivalents that the rows of these sets will cost beyond the cached passes, were none of them known."""
        ablated = [self.everything - kept for kept in sets]
        if self.ablation == "mean":
            self.engine.prepare_means(_sites(frozenset().union(*ablated)))
        return sum(
            block.estimate(rows)
            for first, block in self.engine.blocks()
            for _, rows in self._jobs(first, block, ablated, len(block.prompts))
        )

    def _jobs(
        self, first: int, block: Block, ablated: Sequence[NodeSet], count: int
    ) -> list[tuple[list[int], Rows]]:
        """Sets by the first layer that they touch, with their rows."""
        by_start: dict[int, list[int]] = defaultdict(list)
        for number, nodes in enumerate(ablated):
            if nodes:
                by_start[min(node.layer for node in nodes if node.layer is not None)].append(number)
        return [
            (members, self._rows(first, block, [ablated[n] for n in members], start, count))
            for start, members in sorted(by_start.items())
        ]

    def _measure_block(
        self, first: int, block: Block, ablated: Sequence[NodeSet], label: str, count: int
    ) -> Float[Tensor, "set pair"]:
        result = block.baseline("clean")[:count].repeat(len(ablated), 1)
        jobs = self._jobs(first, block, ablated, count)
        block.meter.begin(
            self.engine.block_label(label, first, block),
            sum(block.estimate(rows) for _, rows in jobs),
        )
        for members, rows in jobs:
            result[members] = block.measure(rows).reshape(len(members), count)
        return result

    def _rows(
        self, first: int, block: Block, ablated: Sequence[NodeSet], start: int, count: int
    ) -> Rows:
        device, info = block.prompts.length.device, self.engine.backend.info
        pair = torch.arange(count, device=device).repeat(len(ablated))
        number = torch.arange(len(ablated), device=device).repeat_interleave(count)
        values: list[tuple[Site, Tensor, Bool[Tensor, "set ..."]]] = []
        for site in _sites(frozenset().union(*ablated)):
            where = [
                [Node("attention_head", site.layer, h) in nodes for h in range(info.n_heads)]
                for nodes in ablated
            ]
            if site.kind == "mlp_out":
                where = [[Node("mlp", site.layer) in nodes] for nodes in ablated]
            value = self.engine.reference_values(self.ablation, first, block, site)
            values.append((site, value, torch.tensor(where, device=device)))
        same_before = (
            self.ablation == "resample"
        )  # up to the first differing token the corrupted run is the clean run

        def edits(window: Window) -> list[Edit]:
            chosen = number[window.index]
            return [_edit(site, value, where[chosen], window) for site, value, where in values]

        start_at = block.prompts.first_difference[pair] if same_before else torch.zeros_like(pair)
        return Rows("clean", pair, start_at, start=start, edits=edits)


def _edit(site: Site, value: Tensor, where: Tensor, window: Window) -> Edit:
    """`where` is [row head] of heads, [row 1] of an MLP; both apply at every position."""
    shaped = where.unsqueeze(1) if site.kind == "z" else where  # [row 1 head] or [row 1]
    return Edit(site, value[:, window.first : window.end], shaped, index=window.pair)


def _sites(nodes: NodeSet) -> list[Site]:
    return sorted({output_site(node) for node in nodes})


@dataclass(frozen=True)
class AblationResult:
    """What ablating a set of nodes does.

    Attributes:
        metric_clean, metric_ablated: means over pairs.
        per_pair: the metric with the nodes ablated, [pair]; per_pair_clean without.
        reference: what the nodes were replaced by: source, alignment and size of the means.
    """

    nodes: tuple[str, ...]
    ablation: Ablation
    metric: MetricName
    metric_clean: float
    metric_ablated: float
    per_pair: Float[Tensor, "pair"]
    per_pair_clean: Float[Tensor, "pair"]
    reference: dict[str, str | int]
    cost: MeasurementCost


def parse_nodes(model: Backend, nodes: Iterable[str | Node]) -> NodeSet:
    """Nodes by name, checked against the model.

    Raises:
        SiteError: for a name that is no node of this model, such as a key-value head's (a23.kv1).
    """
    if isinstance(nodes, str):
        raise SiteError(f"nodes is the text {nodes!r}, not a list.", f"Write [{nodes!r}].")
    return frozenset(model.info.parse(node) for node in nodes)


def describe_reference(engine: Engine, ablation: Ablation) -> dict[str, str | int]:
    """What nodes are replaced by, as recorded."""
    if ablation == "mean":
        plan = engine.reference_plan
        return {
            "source": "corrupted prompts of the same split, the pair itself left out",
            "alignment": plan.alignment,
            "size": plan.size,
        }
    if ablation == "zero":
        return {"source": "zero", "alignment": "none", "size": 0}
    return {"source": "the pair's own corrupted run", "alignment": "position", "size": 1}


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
    """Ablate heads and MLPs together, at all positions, in every pair's clean prompt.

    Args:
        nodes: "a9.h6" (L9H6 and 9.6 are understood too) and "m5".
        ablation: resample, mean, or zero (which depends on how weights were processed and enters no verdict).

    Raises:
        SiteError: for a node this model lacks.
        MeasurementError: for an unknown ablation or metric.
    """
    began = time.monotonic()
    chosen = parse_nodes(model, nodes)
    engine = engine_for(engine, model, task, metric, memory, progress)
    before = engine.meter.spent
    sets = SetMetric(engine, ablation)
    clean, ablated = sets([sets.everything, sets.everything - chosen], "ablation")
    return AblationResult(
        tuple(str(node) for node in sorted(chosen)),
        ablation,
        engine.metric,
        float(clean.double().mean()),
        float(ablated.double().mean()),
        ablated,
        clean,
        describe_reference(engine, ablation),
        MeasurementCost(engine.meter.spent - before, time.monotonic() - began),
    )
