"""Does a set of nodes hold as the circuit?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from mcp.types import CallToolResult
from pydantic import Field

from discovery.sites import Universe
from discovery.tasks import BUILTIN
from mcp_server.errors import ServerError
from mcp_server.session import DeviceJob as Job
from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import (
    DEFAULT_PAIRS,
    MIN_VERDICT_PAIRS,
    Budget,
    DetailLevel,
    ModelId,
    NodeNames,
    PairCount,
    Seed,
    TaskSource,
    ToolContext,
    load_task_with_notes,
)
from mcp_server.tools.circuit_views import evaluation_block, shorten_evaluation
from mcp_server.tools.measure.check_task import MetricChoice
from mcp_server.tools.result import CostView, Listing, cost_view, to_call_result

if TYPE_CHECKING:
    from discovery.backends.base import Backend
    from discovery.tasks.task import Task


class EvaluateCircuitResult(Listing):
    """What evaluate_circuit gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("nodes", "reasons")
    narrowing_hint: ClassVar[str] = (
        "Give fewer nodes; the discovery split and the curve are left out of `evaluation` first."
    )

    model_id: str
    task: str
    nodes: list[str]
    final: bool
    verdict: str = Field(
        description="verified, partial, rejected, inconclusive or no_behaviour: computed, not judged."
    )
    reasons: list[str] = Field(description="Each condition that does not hold, with its numbers.")
    evaluation: dict[str, Any] = Field(
        description="As in circuit.json: conditions a to f, faithfulness, knockout, completeness, controls."
    )
    warnings: list[str]
    cost: CostView


async def evaluate_circuit(
    call: ToolContext,
    model_id: ModelId,
    task: TaskSource,
    nodes: NodeNames,
    final: Annotated[
        bool,
        Field(
            description="Look at the held-out pairs. Once, after the circuit is fixed: further looks are counted."
        ),
    ] = False,
    universe: Annotated[
        Universe, Field(description="all heads and MLPs, or heads with MLPs kept.")
    ] = "all",
    metric: MetricChoice = None,
    budget: Budget | None = None,
    pairs: PairCount = DEFAULT_PAIRS,
    seed: Seed = 0,
    detail: DetailLevel = "concise",
) -> Annotated[CallToolResult, EvaluateCircuitResult]:
    """Tests a set of nodes as the circuit of a behaviour: sufficient (a), necessary (b), complete (c), minimal (d), better than random
    sets of its size (e), under resample and mean ablation, with intervals; and computes the verdict.

    Use it while you search with final=false (discovery pairs), and once at the end with final=true and pairs=200 or more: a verdict
    needs 48 held-out pairs. Do not repeat final=true while you change the circuit. It says at most `partial`: stability (f) takes a
    search, which discover_circuit does. Cost: some hundred forward passes per pair; 32 pairs of ioi in the bundled
    model about 10 s, 200 about a minute.

    Example: evaluate_circuit(model_id="bundled", task="ioi", nodes=["a0.h3", "m0", "a1.h0", "a1.h3", "a2.h0", "m2", "m3"]).
    """
    session = call.request_context.lifespan_context
    if final and session.settings.read_only:
        raise ServerError(
            "This server is read-only, and a look at the held-out pairs is written down, so final=true is not possible.",
            "Call with final=false (discovery pairs), or have the server started without --read-only.",
        )
    loaded = session.models.get(model_id)

    def job(work: Job) -> EvaluateCircuitResult:
        read, notes = load_task_with_notes(session, loaded, task, pairs, seed)
        if (
            final
            and len(read) < MIN_VERDICT_PAIRS
            and (notes or (isinstance(task, str) and task in BUILTIN))
        ):
            raise ServerError(
                f"final=true looks at the held-out pairs, and of {len(read)} pairs too few are held out: a verdict needs {MIN_VERDICT_PAIRS} pairs.",
                f"Pass pairs=200, or as many as the task has, at least {MIN_VERDICT_PAIRS}; or search with final=false.",
            )
        work.expect(_estimate_cost(loaded.backend, read, universe, session.settings.memory))
        found = lazy_discovery.evaluate_circuit(
            loaded.backend,
            read,
            nodes,
            final=final,
            metric=metric,
            universe=universe,
            seed=seed,
            memory=session.settings.memory,
            budget=budget,
            runs_dir=session.settings.runs_dir,
            progress=work,
        )
        block = evaluation_block(found.evaluation, detailed=detail == "detailed")
        shown = shorten_evaluation(block, 30_000 if detail == "detailed" else 6_500)
        return EvaluateCircuitResult(
            model_id=model_id,
            task=read.name,
            nodes=list(found.nodes),
            final=final,
            verdict=found.verdict,
            reasons=list(found.reasons),
            evaluation=shown,
            warnings=notes,
            total=len(found.nodes),
            truncated=shown is not block,
            narrow=None
            if detail == "detailed"
            else "detail='detailed' gives every row of (d) and the thresholds.",
            cost=cost_view(found.cost),
        )

    return to_call_result(
        await session.devices.run(call, loaded.device, f"evaluate_circuit {model_id}", job),
        detailed=detail == "detailed",
    )


def _estimate_cost(model: Backend, task: Task, universe: Universe, memory: int | None) -> float:
    """What an evaluation is estimated to take, for a circuit of ordinary size: off by up to a factor of two."""
    if not task.discovery.pairs or not task.heldout.pairs:  # refused later, in words
        return 0.0
    stages = lazy_discovery.estimate_cost(model, task, universe=universe, memory=memory).stages
    return stages["check"] + stages["heads"] + stages["validate"]
