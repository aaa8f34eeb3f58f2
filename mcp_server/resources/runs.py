"""The files of runs, and what results left to be fetched."""

from __future__ import annotations

import dataclasses
import json

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError

from discovery.errors import DiscoveryError
from discovery.store.files import read_bytes, resolve_inside
from mcp_server.session import Session

JSON_TYPE, PNG_TYPE, SAFETENSORS_TYPE = "application/json", "image/png", "application/octet-stream"


def add_run_resources(server: MCPServer[Session], session: Session) -> None:
    """Runs and results as resources; a missing one is told with what there is."""

    def document(run_id: str, name: str) -> str:
        try:
            run = session.runs.open(run_id)
            return session.allowed_paths.redact_run_text(
                read_bytes(resolve_inside(run.path, name)).decode(), run.record
            )
        except DiscoveryError as fault:
            raise ResourceNotFoundError(session.settings.redact_paths(str(fault))) from None

    @server.resource(
        "scout://runs",
        name="runs",
        title="All runs",
        mime_type=JSON_TYPE,
        description="Every run that is kept, the newest first.",
    )
    def runs() -> str:
        return json.dumps(
            {"runs": [dataclasses.asdict(run) for run in session.list_run_summaries()[:200]]}
        )

    @server.resource(
        "scout://runs/{run_id}/circuit.json", name="circuit", title="The circuit of a run", mime_type=JSON_TYPE,
        description="networkx node-link data: the circuit with its evaluation, verdict and provenance.",
    )  # fmt: skip
    def circuit(run_id: str) -> str:
        return document(run_id, "circuit.json")

    @server.resource(
        "scout://runs/{run_id}/run.json", name="run", title="What a run was asked", mime_type=JSON_TYPE,
        description="Configuration, model, status.",
    )  # fmt: skip
    def record(run_id: str) -> str:
        return document(run_id, "run.json")

    @server.resource(
        "scout://runs/{run_id}/report.html",
        name="report",
        title="The page of a run",
        mime_type="text/html",
        description="One self-contained page.",
    )
    def report(run_id: str) -> str:
        return document(run_id, "report.html")

    @server.resource(
        "scout://runs/{run_id}/figures/{name}",
        name="figure",
        title="A figure of a run",
        mime_type=PNG_TYPE,
        description="A picture.",
    )
    def figure(run_id: str, name: str) -> bytes:
        try:
            return session.runs.open(run_id).load_figure(name)
        except DiscoveryError as fault:
            raise ResourceNotFoundError(session.settings.redact_paths(str(fault))) from None

    @server.resource(
        "scout://runs/{run_id}/arrays/{name}",
        name="array",
        title="Full arrays of a run",
        mime_type=SAFETENSORS_TYPE,
        description="safetensors.",
    )
    def array(run_id: str, name: str) -> bytes:
        try:
            run = session.runs.open(run_id)
            run.array_metadata(name)  # checks the name, and that it is there
            return read_bytes(
                run.path / "arrays" / f"{name.removesuffix('.safetensors')}.safetensors"
            )
        except DiscoveryError as fault:
            raise ResourceNotFoundError(session.settings.redact_paths(str(fault))) from None

    kinds = (
        ("grid.json", JSON_TYPE, "Full grid"),
        ("heatmap.png", PNG_TYPE, "Heatmap"),
        ("activations.safetensors", SAFETENSORS_TYPE, "Activations"),
    )
    for name, mime_type, title in kinds:
        _add_result(server, session, name, mime_type, title)


def _add_result(
    server: MCPServer[Session], session: Session, name: str, mime_type: str, title: str
) -> None:
    @server.resource(
        f"scout://results/{{result_id}}/{name}",
        name=name,
        title=f"{title} of a result",
        mime_type=mime_type,
        description="Kept in memory until the server ends.",
    )
    def result(result_id: str) -> bytes | str:
        try:
            content = session.artifacts.get(result_id, name)
        except DiscoveryError as fault:
            raise ResourceNotFoundError(str(fault)) from None
        return content.decode() if mime_type == JSON_TYPE else content
