"""Ablating heads and MLPs together, against what random sets do."""

from __future__ import annotations

from typing import Annotated, ClassVar

from mcp.types import CallToolResult
from pydantic import Field

from discovery.sites import Ablation
from mcp_server.session import DeviceJob as Job
from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import (
    DEFAULT_PAIRS,
    ModelId,
    NodeNames,
    PairCount,
    Seed,
    TaskSource,
    ToolContext,
    load_task_with_notes,
)
from mcp_server.tools.measure.check_task import MetricChoice
from mcp_server.tools.result import CostView, Listing, Result, round_number, to_call_result


class SingleAblationView(Result):
    """One node ablated alone."""

    node: str
    metric_ablated: float | None
    change: float | None


class ControlsView(Result):
    """Random sets of as many heads and as many MLPs, ablated likewise."""

    n: int
    n_possible: float
    mean: float | None
    lowest: float | None
    highest: float | None
    as_large: int = Field(
        description="Sets that change the metric at least as much: 0 of many speaks for these nodes."
    )


class ReferenceView(Result):
    """What an ablated node was given."""

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
    call: ToolContext,
    model_id: ModelId,
    task: TaskSource,
    nodes: NodeNames,
    ablation: Annotated[
        Ablation,
        Field(
            description="resample: the corrupted run's value; mean: mean over corrupted prompts; zero: depends on weights, proves little."
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
    """Ablates heads and MLPs together, at all positions of the clean prompts, and compares the metric before and after with what random
    sets of the same size do.

    Use it to test whether nodes that a sweep found are needed, alone and together: where the set matters and no member does alone, they
    back each other up. Not a verdict: evaluate_circuit tests sufficiency, completeness and minimality too. Nodes outside the set stay.
    Cost: one forward pass per pair, one more for each node (`per_node`) and control; ioi in the bundled model about 1 s.

    Example: ablate_heads(model_id="bundled", task="ioi", nodes=["a0.h3", "a2.h0"], per_node=true).
    """
    session = call.request_context.lifespan_context
    loaded = session.models.get(model_id)

    def job(work: Job) -> AblateHeadsResult:
        read, notes = load_task_with_notes(session, loaded, task, pairs, seed)
        engine = lazy_discovery.Engine(
            loaded.backend,
            read,
            metric=metric,
            memory=session.settings.memory,
            meter=lazy_discovery.Meter(progress=work),
        )
        found = lazy_discovery.ablate_heads(
            loaded.backend, read, nodes, ablation=ablation, engine=engine
        )
        beside = lazy_discovery.compare_with_controls(
            loaded.backend,
            read,
            nodes,
            ablation=ablation,
            per_node=per_node,
            controls=controls,
            seed=seed,
            engine=engine,
        )
        clean = found.metric_clean
        others = beside.controls
        return AblateHeadsResult(
            model_id=model_id,
            task=read.name,
            n=len(read),
            nodes=list(found.nodes),
            ablation=ablation,
            metric=found.metric,
            metric_clean=round_number(clean),
            metric_ablated=round_number(found.metric_ablated),
            change=round_number(found.metric_ablated - clean),
            share_left=round_number(found.metric_ablated / clean) if abs(clean) > 1e-6 else None,
            per_node=[
                SingleAblationView(
                    node=node,
                    metric_ablated=round_number(value),
                    change=round_number(value - clean),
                )
                for node, value in sorted(beside.per_node, key=lambda row: -abs(row[1] - clean))
            ],
            controls=ControlsView(
                n=len(others),
                n_possible=float(min(beside.n_possible, 10**15)),
                mean=round_number(sum(others) / len(others)),
                lowest=round_number(min(others)),
                highest=round_number(max(others)),
                as_large=beside.as_large,
            )
            if others
            else None,
            reference=ReferenceView.model_validate(found.reference.model_dump()),
            warnings=notes,
            total=len(found.nodes),
            cost=CostView(
                forward_equivalents=round_number(
                    found.cost.forward_equivalents + beside.cost.forward_equivalents, 6
                ),
                seconds=round_number(found.cost.seconds + beside.cost.seconds, 3),
            ),
        )

    return to_call_result(
        await session.devices.run(call, loaded.device, f"ablate_heads {model_id}", job)
    )
