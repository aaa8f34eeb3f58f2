"""Features put beside the circuit of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from mcp.types import CallToolResult
from pydantic import Field, StrictInt

from mcp_server.errors import ServerError
from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import ModelId, RunId, SaeName, ToolContext
from mcp_server.tools.circuit_views import EdgeView, edge_views
from mcp_server.tools.measurement import Measurement, run_measurement, session_of
from mcp_server.tools.result import (
    CostView,
    Listing,
    Result,
    cost_view,
    round_number,
    to_call_result,
)

if TYPE_CHECKING:
    from discovery.graph import FeatureFacts
    from discovery.methods.features import FeatureCircuit
    from discovery.methods.features.circuit.candidates import Candidate


class CandidateView(Result):
    """A candidate by attribution; effects are shares of clean − corrupted, on held-out pairs."""

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
        description="How much of the behaviour survives the reconstruction."
    )
    verdict: str | None = Field(description="Unchanged: features enter no condition.")
    candidates: list[CandidateView]
    edges: list[EdgeView] = Field(description="Of the features that hold.")
    cost: CostView


async def circuit_features(
    context: ToolContext,
    run_id: RunId,
    model_id: ModelId,
    sae: SaeName = None,
    positions: Annotated[
        list[StrictInt | str] | None, Field(description="As in sae_top_features.", max_length=500)
    ] = None,
    k: Annotated[int, Field(description="How many candidates.", ge=1, le=64)] = 16,
) -> Annotated[CallToolResult, CircuitFeaturesResult]:
    """Puts features of a sparse autoencoder beside the heads and MLPs of a finished run. It finds
    them by attribution on discovery pairs. On held-out pairs it replaces each one's clean value by
    its corrupted value, and keeps those whose effect has an interval without 0, is significant, and
    is beyond that of random directions. It measures their edges from and to the circuit by path
    patching, and writes all of it into the run's record.

    Use it after get_circuit, to say what the heads tell one another. It changes no verdict.
    Features of the same site are replaced. Not for a first look at features: sae_top_features.
    Cost: some dozen passes per pair and candidate; ioi in the bundled model about a minute.

    Example: circuit_features(run_id="ioi-gpt2-20261120-153012-a1b2", model_id="gpt2",
    sae="layer8").
    """
    if session_of(context).runs.find(run_id) is not None:
        raise ServerError(
            f"The run {run_id} is at work.", f'Wait for its end: run_status(run_id="{run_id}").'
        )

    def measure(measurement: Measurement) -> CircuitFeaturesResult:
        dictionary, name = measurement.open_sae(sae)
        settings = measurement.session.settings
        feature_circuit = lazy_discovery.add_features_to_run(
            measurement.session.runs.open(run_id).id,
            dictionary,
            model=measurement.backend,
            positions=positions,
            k=k,
            runs_dir=settings.runs_dir,
            memory=measurement.memory,
            progress=measurement.job,
        )
        return _make_result(run_id, name, feature_circuit)

    return to_call_result(
        await run_measurement(context, model_id, f"circuit_features {run_id}", measure)
    )


def _make_result(run_id: str, sae: str, feature_circuit: FeatureCircuit) -> CircuitFeaturesResult:
    facts = {node.id: node.feature for node in feature_circuit.circuit.nodes if node.feature}
    candidates = sorted(feature_circuit.candidates, key=lambda one: one.why is not None)
    views = [_candidate_view(candidate, facts.get(str(candidate.node))) for candidate in candidates]
    ids = {view.id for view in views}
    edges = edge_views(feature_circuit.circuit)
    reconstruction = feature_circuit.reconstruction
    share = reconstruction.share
    return CircuitFeaturesResult(
        warnings=list(feature_circuit.warnings),
        run_id=run_id,
        sae=sae,
        variance_explained=round_number(reconstruction.variance_explained),
        l0=round_number(reconstruction.l0),
        share_of_metric=round_number(share.mean) if share else None,
        verdict=feature_circuit.circuit.verdict,
        candidates=views,
        edges=[edge for edge in edges if {edge.source, edge.target} & ids],
        total=len(views),
        cost=cost_view(feature_circuit.cost),
    )


def _candidate_view(candidate: Candidate, facts: FeatureFacts | None) -> CandidateView:
    return CandidateView(
        id=str(candidate.node),
        holds=candidate.why is None,
        noising=round_number(candidate.noising.mean, 4),
        denoising=round_number(candidate.denoising.mean, 4),
        control_p=round_number(candidate.control_p, 3),
        fires_on=list(facts.fires_on) if facts else [],
        promotes=list(facts.promotes) if facts else [],
        why=candidate.why,
    )
