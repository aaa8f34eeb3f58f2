"""Ablating heads and MLPs together, compared with what random sets of the same size do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from mcp.types import CallToolResult
from pydantic import Field

from discovery.sites import Ablation
from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import (
    DEFAULT_PAIRS,
    MetricChoice,
    ModelId,
    NodeNames,
    PairCount,
    Seed,
    TaskSource,
    ToolContext,
)
from mcp_server.tools.measurement import Measurement, run_measurement
from mcp_server.tools.result import (
    CostView,
    Listing,
    Result,
    cost_view,
    round_number,
    to_call_result,
)

if TYPE_CHECKING:
    from discovery.methods.ablation import AblationResult
    from discovery.methods.controls import ControlComparison
    from discovery.tasks.task import Task

_MAX_EXACT_COUNT = 10**15  # of possible sets; more are shown as this many
_MIN_METRIC = 1e-6  # below it, a share of the metric means nothing


class SingleAblationView(Result):
    """One node ablated alone."""

    node: str
    metric_ablated: float | None
    change: float | None


class ControlsView(Result):
    """Random sets of as many heads and as many MLPs, ablated in the same way."""

    n: int
    n_possible: float
    mean: float | None
    lowest: float | None
    highest: float | None
    as_large: int = Field(
        description="Sets that change the metric at least as much: 0 of many speaks for these "
        "nodes."
    )


class ReferenceView(Result):
    """What was put in place of an ablated node's value."""

    source: str
    alignment: str
    size: int


class AblateHeadsResult(Listing):
    """What ablate_heads gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("nodes", "per_node")
    narrowing_hint: ClassVar[str] = (
        "Give fewer nodes at a time; those listed are the ones that change the metric most alone."
    )

    model_id: str
    task: str
    n: int
    nodes: list[str]
    ablation: str
    metric: str
    metric_clean: float | None = Field(description="Nothing ablated.")
    metric_ablated: float | None = Field(description="All these nodes ablated together.")
    change: float | None
    share_left: float | None = Field(description="metric_ablated / metric_clean.")
    per_node: list[SingleAblationView] = Field(description="The largest change first.")
    controls: ControlsView | None
    reference: ReferenceView
    warnings: list[str]
    cost: CostView


async def ablate_heads(
    context: ToolContext,
    model_id: ModelId,
    task: TaskSource,
    nodes: NodeNames,
    ablation: Annotated[
        Ablation,
        Field(
            description="resample: the corrupted run's value; mean: the mean over corrupted "
            "prompts; zero: depends on how weights were processed, proves little."
        ),
    ] = "resample",
    metric: MetricChoice = None,
    per_node: Annotated[bool, Field(description="Also ablate each node alone.")] = False,
    controls: Annotated[
        int, Field(description="Random sets of the same size to compare with.", ge=0, le=200)
    ] = 10,
    pairs: PairCount = DEFAULT_PAIRS,
    seed: Seed = 0,
) -> Annotated[CallToolResult, AblateHeadsResult]:
    """Ablates heads and MLPs together, at all positions of the clean prompts, and compares the
    metric before and after with what random sets of the same size do. All other nodes stay.

    Use it to test whether nodes that a sweep found are needed, alone and together. If the set
    matters and no member does alone, the members back each other up. Not for a verdict:
    evaluate_circuit tests sufficiency, completeness and minimality too. Cost: one forward pass per
    pair, and one more for each node (`per_node`) and each control; ioi in the bundled model about
    1 s.

    Example: ablate_heads(model_id="bundled", task="ioi", nodes=["a0.h3", "a2.h0"], per_node=true).
    """

    def measure(measurement: Measurement) -> AblateHeadsResult:
        loaded_task, notes = measurement.load_task(task, pairs, seed)
        engine = lazy_discovery.Engine(
            measurement.backend,
            loaded_task,
            metric=metric,
            memory=measurement.memory,
            meter=lazy_discovery.Meter(progress=measurement.job),
        )
        ablated = lazy_discovery.ablate_heads(
            measurement.backend, loaded_task, nodes, ablation=ablation, engine=engine
        )
        comparison = lazy_discovery.compare_with_controls(
            measurement.backend,
            loaded_task,
            nodes,
            ablation=ablation,
            per_node=per_node,
            controls=controls,
            seed=seed,
            engine=engine,
        )
        return _make_result(model_id, loaded_task, ablation, ablated, comparison, notes)

    return to_call_result(
        await run_measurement(context, model_id, f"ablate_heads {model_id}", measure)
    )


def _make_result(
    model_id: str,
    task: Task,
    ablation: Ablation,
    ablated: AblationResult,
    comparison: ControlComparison,
    notes: list[str],
) -> AblateHeadsResult:
    clean = ablated.metric_clean
    return AblateHeadsResult(
        model_id=model_id,
        task=task.name,
        n=len(task),
        nodes=list(ablated.nodes),
        ablation=ablation,
        metric=ablated.metric,
        metric_clean=round_number(clean),
        metric_ablated=round_number(ablated.metric_ablated),
        change=round_number(ablated.metric_ablated - clean),
        share_left=_share_left(ablated),
        per_node=_single_views(comparison, clean),
        controls=_controls_view(comparison),
        reference=ReferenceView.model_validate(ablated.reference.model_dump()),
        warnings=notes,
        total=len(ablated.nodes),
        cost=cost_view(ablated.cost, comparison.cost),
    )


def _share_left(ablated: AblationResult) -> float | None:
    if abs(ablated.metric_clean) <= _MIN_METRIC:
        return None
    return round_number(ablated.metric_ablated / ablated.metric_clean)


def _single_views(comparison: ControlComparison, clean: float) -> list[SingleAblationView]:
    """Return what each node changes alone, the largest change first."""
    rows = sorted(comparison.per_node, key=lambda row: -abs(row[1] - clean))
    return [
        SingleAblationView(
            node=node, metric_ablated=round_number(metric), change=round_number(metric - clean)
        )
        for node, metric in rows
    ]


def _controls_view(comparison: ControlComparison) -> ControlsView | None:
    """Return what the random sets do; None if none were measured."""
    metrics = comparison.controls
    if not metrics:
        return None
    return ControlsView(
        n=len(metrics),
        n_possible=float(min(comparison.n_possible, _MAX_EXACT_COUNT)),
        mean=round_number(sum(metrics) / len(metrics)),
        lowest=round_number(min(metrics)),
        highest=round_number(max(metrics)),
        as_large=comparison.as_large,
    )
