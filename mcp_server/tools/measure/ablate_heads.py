"""Ablating heads and MLPs together, against what random sets do."""

from __future__ import annotations

from typing import Annotated, ClassVar

from mcp.types import CallToolResult
from pydantic import Field

from discovery.sites import Ablation
from mcp_server.session import Work as Job
from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import DRAWN, Call, Count, ModelId, Nodes, Seed, TaskSource, drawn
from mcp_server.tools.measure.check_task import Metric
from mcp_server.tools.result import Listing, Result, Work, answer, number


class Alone(Result):
    """One node ablated alone."""

    node: str
    metric_ablated: float | None
    change: float | None


class Controls(Result):
    """Random sets of as many heads and as many MLPs, ablated likewise."""

    n: int
    n_possible: float
    mean: float | None
    lowest: float | None
    highest: float | None
    as_large: int = Field(description="Sets that change the metric at least as much: 0 of many speaks for these nodes.")


class Given(Result):
    """What an ablated node was given."""

    source: str
    alignment: str
    size: int


class AblatedNodes(Listing):
    """What ablate_heads gives."""

    lists: ClassVar[tuple[str, ...]] = ("nodes", "per_node")
    rest: ClassVar[str] = "Give fewer nodes at a time; those listed are the ones that change the metric most alone."

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
    per_node: list[Alone] = Field(description="The largest change first.")
    controls: Controls | None
    reference: Given
    warnings: list[str]
    cost: Work


async def ablate_heads(
    call: Call,
    model_id: ModelId,
    task: TaskSource,
    nodes: Nodes,
    ablation: Annotated[
        Ablation,
        Field(
            description="resample: the corrupted run's value; mean: mean over corrupted prompts; zero: depends on weights, proves little."
        ),
    ] = "resample",
    metric: Metric = None,
    per_node: Annotated[bool, Field(description="Also ablate each node alone.")] = False,
    controls: Annotated[int, Field(description="Random sets of the same size to compare with.", ge=0, le=200)] = 10,
    pairs: Count = DRAWN,
    seed: Seed = 0,
) -> Annotated[CallToolResult, AblatedNodes]:
    """Ablates heads and MLPs together, at all positions of the clean prompts, and compares the metric before and after with what random
    sets of the same size do.

    Use it to test whether nodes that a sweep found are needed, alone and together: where the set matters and no member does alone, they
    back each other up. Not a verdict: evaluate_circuit tests sufficiency, completeness and minimality too. Nodes outside the set stay.
    Cost: one forward pass per pair, one more for each node (`per_node`) and control; ioi in the bundled model about 1 s.

    Example: ablate_heads(model_id="bundled", task="ioi", nodes=["a0.h3", "a2.h0"], per_node=true).
    """
    session = call.request_context.lifespan_context
    loaded = session.models.get(model_id)

    def job(work: Job) -> AblatedNodes:
        read, notes = drawn(session, loaded, task, pairs, seed)
        engine = lazy_discovery.Engine(
            loaded.backend, read, metric=metric, memory=session.settings.memory, meter=lazy_discovery.Meter(progress=work)
        )
        found = lazy_discovery.ablate_heads(loaded.backend, read, nodes, ablation=ablation, engine=engine)
        beside = lazy_discovery.contrast(
            loaded.backend, read, nodes, ablation=ablation, each=per_node, controls=controls, seed=seed, engine=engine
        )
        clean = found.metric_clean
        others = beside.controls
        return AblatedNodes(
            model_id=model_id,
            task=read.name,
            n=len(read),
            nodes=list(found.nodes),
            ablation=ablation,
            metric=found.metric,
            metric_clean=number(clean),
            metric_ablated=number(found.metric_ablated),
            change=number(found.metric_ablated - clean),
            share_left=number(found.metric_ablated / clean) if abs(clean) > 1e-6 else None,
            per_node=[
                Alone(node=node, metric_ablated=number(value), change=number(value - clean))
                for node, value in sorted(beside.per_node, key=lambda row: -abs(row[1] - clean))
            ],
            controls=Controls(
                n=len(others),
                n_possible=float(min(beside.n_possible, 10**15)),
                mean=number(sum(others) / len(others)),
                lowest=number(min(others)),
                highest=number(max(others)),
                as_large=beside.as_large,
            )
            if others
            else None,
            reference=Given.model_validate(found.reference),
            warnings=notes,
            total=len(found.nodes),
            cost=Work(
                forward_equivalents=number(found.cost.forward_equivalents + beside.cost.forward_equivalents, 6),
                seconds=number(found.cost.seconds + beside.cost.seconds, 3),
            ),
        )

    return answer(await session.devices.run(call, loaded.device, f"ablate_heads {model_id}", job))
