"""Features put beside the circuit of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from mcp.types import CallToolResult
from pydantic import Field, StrictInt

from mcp_server.errors import ServerError
from mcp_server.session import DeviceJob as Job
from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import ModelId, RunId, SaeName, ToolContext
from mcp_server.tools.circuit_views import EdgeView, edge_views
from mcp_server.tools.features.sae_top_features import opened
from mcp_server.tools.result import (
    CostView,
    Listing,
    Result,
    cost_view,
    round_number,
    to_call_result,
)

if TYPE_CHECKING:
    from discovery.methods.features import FeatureCircuit


class CandidateView(Result):
    """A feature that attribution put first; effects are shares of clean − corrupted, on held-out pairs."""

    id: str
    holds: bool
    noising: float | None
    denoising: float | None
    control_p: float | None
    fires_on: list[str]
    promotes: list[str]
    why: str | None = Field(description="What it lacks.")


class CircuitFeaturesResult(Listing):
    """What circuit_features gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("edges", "candidates", "warnings")
    narrowing_hint: ClassVar[str] = (
        "get_circuit(run_id=..., top=500, detail='detailed') lists more."
    )

    warnings: list[str] = Field(description="A poor reconstruction stands first.")
    run_id: str
    sae: str
    variance_explained: float | None
    l0: float | None
    share_of_metric: float | None = Field(
        description="Of the behaviour, what survives the reconstruction."
    )
    verdict: str | None = Field(description="As it was: features enter no condition.")
    candidates: list[CandidateView]
    edges: list[EdgeView] = Field(description="Of the features that hold.")
    cost: CostView


async def circuit_features(
    call: ToolContext,
    run_id: RunId,
    model_id: ModelId,
    sae: SaeName = None,
    positions: Annotated[
        list[StrictInt | str] | None, Field(description="As in sae_top_features.", max_length=500)
    ] = None,
    k: Annotated[int, Field(description="How many candidates.", ge=1, le=64)] = 16,
) -> Annotated[CallToolResult, CircuitFeaturesResult]:
    """Puts features of a sparse autoencoder beside the heads and MLPs of a finished run: finds them by attribution on discovery pairs,
    keeps those whose exact exchange holds on held-out pairs (interval, chance, random directions), measures their edges from and to
    the circuit by path patching, and writes all of it into the run's record.

    Use it after get_circuit, to say what the heads tell one another. It changes no verdict. Features of the same site are
    replaced. Cost: some dozen passes per pair and candidate; ioi in the bundled model about a minute.

    Example: circuit_features(run_id="ioi-gpt2-20261120-153012-a1b2", model_id="gpt2", sae="layer8").
    """
    session = call.request_context.lifespan_context
    loaded = session.models.get(model_id)
    if session.runs.find(run_id) is not None:
        raise ServerError(
            f"The run {run_id} is at work.", f'Wait for its end: run_status(run_id="{run_id}").'
        )

    def job(work: Job) -> CircuitFeaturesResult:
        source = session.allowed_paths.resolve_sae(sae)
        made = lazy_discovery.add_features_to_run(
            session.runs.open(run_id).id,
            opened(source, loaded.backend),
            model=loaded.backend,
            positions=positions,
            k=k,
            runs_dir=session.settings.runs_dir,
            memory=session.settings.memory,
            progress=work,
        )
        return _make_result(run_id, session.allowed_paths.format_path(source), made)

    return to_call_result(
        await session.devices.run(call, loaded.device, f"circuit_features {run_id}", job)
    )


def _make_result(run_id: str, sae: str, made: FeatureCircuit) -> CircuitFeaturesResult:
    facts = {node.id: node.feature for node in made.circuit.nodes if node.feature}
    views = [
        CandidateView(
            id=str(one.node),
            holds=one.why is None,
            noising=round_number(one.noising.mean, 4),
            denoising=round_number(one.denoising.mean, 4),
            control_p=round_number(one.control_p, 3),
            fires_on=list(known.fires_on) if (known := facts.get(str(one.node))) else [],
            promotes=list(known.promotes) if known else [],
            why=one.why,
        )
        for one in sorted(made.candidates, key=lambda one: one.why is not None)
    ]
    mine = {str(one.node) for one in made.candidates}
    return CircuitFeaturesResult(
        warnings=list(made.warnings),
        run_id=run_id,
        sae=sae,
        variance_explained=round_number(made.reconstruction.variance_explained),
        l0=round_number(made.reconstruction.l0),
        share_of_metric=round_number(made.reconstruction.share.mean)
        if made.reconstruction.share
        else None,
        verdict=made.circuit.verdict,
        candidates=views,
        edges=[edge for edge in edge_views(made.circuit) if {edge.source, edge.target} & mine],
        total=len(views),
        cost=cost_view(made.cost),
    )
