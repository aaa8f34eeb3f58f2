"""Testing a set of nodes as the circuit of a behaviour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from mcp.types import CallToolResult
from pydantic import Field

from discovery.sites import Universe
from discovery.tasks import BUILTIN
from mcp_server.errors import ServerError
from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import (
    DEFAULT_PAIRS,
    MIN_VERDICT_PAIRS,
    Budget,
    DetailLevel,
    MetricChoice,
    ModelId,
    NodeNames,
    PairCount,
    PairList,
    Seed,
    TaskName,
    TaskSource,
    ToolContext,
)
from mcp_server.tools.circuit_views import evaluation_block, shorten_evaluation
from mcp_server.tools.measurement import Measurement, run_measurement, session_of
from mcp_server.tools.result import CostView, Listing, cost_view, to_call_result

if TYPE_CHECKING:
    from discovery.evaluation.evaluate import CircuitEvaluation
    from discovery.tasks.task import Task

# Characters of the evaluation block, beside the other fields of the result.
_MAX_CONCISE_EVALUATION = 6_500
_MAX_DETAILED_EVALUATION = 30_000


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
        description="verified, partial, rejected, inconclusive or no_behaviour: computed, not "
        "judged."
    )
    reasons: list[str] = Field(description="Each condition that does not hold, with its numbers.")
    evaluation: dict[str, Any] = Field(
        description="As in circuit.json: conditions a to f, faithfulness, knockout, completeness, "
        "controls."
    )
    warnings: list[str]
    cost: CostView


async def evaluate_circuit(
    context: ToolContext,
    model_id: ModelId,
    task: TaskSource,
    nodes: NodeNames,
    final: Annotated[
        bool,
        Field(
            description="Look at the held-out pairs. Once, after the circuit is fixed: further "
            "looks are counted."
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
    """Tests a set of nodes as the circuit of a behaviour, and computes the verdict: is the set
    sufficient (a), necessary (b), complete (c), minimal (d), and better than random sets of its
    size (e)? Each is tested under resample and mean ablation, with intervals.

    Use it with final=false (discovery pairs) while you search, and once at the end with final=true
    and pairs=200 or more: a verdict needs 48 held-out pairs. Do not repeat final=true while you
    change the circuit. It says at most `partial`, because stability (f) takes a search, which
    discover_circuit does. Cost: some hundred forward passes per pair; 32 pairs of ioi in the
    bundled model 10 s, 200 a minute.

    Example: evaluate_circuit(model_id="bundled", task="ioi", nodes=["a0.h0", "a0.h3", "m0",
    "a1.h0", "a1.h3", "a2.h0", "m2", "m3"]).
    """
    is_detailed = detail == "detailed"
    if final and session_of(context).settings.read_only:
        raise ServerError(
            "This server is read-only, and a look at the held-out pairs is recorded, so final=true "
            "is not possible.",
            "Call with final=false (discovery pairs), or have the server started without "
            "--read-only.",
        )

    def measure(measurement: Measurement) -> EvaluateCircuitResult:
        loaded_task, notes = measurement.load_task(task, pairs, seed)
        if final:
            _require_enough_pairs(task, loaded_task, notes)
        measurement.job.expect(_estimate_cost(measurement, loaded_task, universe))
        evaluated = lazy_discovery.evaluate_circuit(
            measurement.backend,
            loaded_task,
            nodes,
            final=final,
            metric=metric,
            universe=universe,
            seed=seed,
            memory=measurement.memory,
            budget=budget,
            runs_dir=measurement.session.settings.runs_dir,
            progress=measurement.job,
        )
        return _make_result(
            model_id, loaded_task, evaluated, notes, final=final, detailed=is_detailed
        )

    result = await run_measurement(context, model_id, f"evaluate_circuit {model_id}", measure)
    return to_call_result(result, detailed=is_detailed)


def _make_result(
    model_id: str,
    task: Task,
    evaluated: CircuitEvaluation,
    notes: list[str],
    *,
    final: bool,
    detailed: bool,
) -> EvaluateCircuitResult:
    block = evaluation_block(evaluated.evaluation, detailed=detailed)
    limit = _MAX_DETAILED_EVALUATION if detailed else _MAX_CONCISE_EVALUATION
    shown = shorten_evaluation(block, limit)
    hint = None if detailed else "detail='detailed' gives every row of (d) and the thresholds."
    return EvaluateCircuitResult(
        model_id=model_id,
        task=task.name,
        nodes=list(evaluated.nodes),
        final=final,
        verdict=evaluated.verdict,
        reasons=list(evaluated.reasons),
        evaluation=shown,
        warnings=notes,
        total=len(evaluated.nodes),
        truncated=shown is not block,
        narrow=hint,
        cost=cost_view(evaluated.cost),
    )


def _require_enough_pairs(source: TaskName | PairList, task: Task, notes: list[str]) -> None:
    """Raise ServerError if a look at the held-out pairs would be spent on too few of them.

    If the caller's own task has no more pairs, the look may be taken all the same.
    """
    is_builtin = isinstance(source, str) and source in BUILTIN
    has_more = bool(notes) or is_builtin
    if len(task) < MIN_VERDICT_PAIRS and has_more:
        raise ServerError(
            f"final=true looks at the held-out pairs, and of {len(task)} pairs too few are held "
            f"out: a verdict needs {MIN_VERDICT_PAIRS} pairs.",
            f"Pass pairs=200, or as many as the task has, at least {MIN_VERDICT_PAIRS}; or search "
            "with final=false.",
        )


def _estimate_cost(measurement: Measurement, task: Task, universe: Universe) -> float:
    """Return the estimated work of evaluating a circuit of ordinary size.

    The estimate can be wrong by a factor of two.
    """
    if not task.discovery.pairs or not task.heldout.pairs:  # the evaluation itself refuses this
        return 0.0
    stages = lazy_discovery.estimate_cost(
        measurement.backend, task, universe=universe, memory=measurement.memory
    ).stages
    return stages["check"] + stages["heads"] + stages["validate"]
