"""The files of runs, and files that results left in memory.

A run or a file that does not exist raises a `DiscoveryError`. `CircuitScoutServer.read_resource`
turns it into an error that the client can read, without the paths of this machine.
"""

from __future__ import annotations

import dataclasses
import json

from mcp.server.mcpserver import MCPServer

from discovery.store.files import read_bytes, resolve_inside
from mcp_server.session import Session

JSON_TYPE = "application/json"
PNG_TYPE = "image/png"
SAFETENSORS_TYPE = "application/octet-stream"
_MAX_RUNS_LISTED = 200


def add_run_resources(server: MCPServer[Session], session: Session) -> None:
    """Add the runs and the files of results to a server."""
    _add_run_list(server, session)
    _add_documents(server, session)
    _add_run_files(server, session)
    _add_result_file(server, session, "grid.json", JSON_TYPE, "Full grid")
    _add_result_file(server, session, "heatmap.png", PNG_TYPE, "Heatmap")
    _add_result_file(server, session, "picture.png", PNG_TYPE, "Picture")
    _add_result_file(server, session, "activations.safetensors", SAFETENSORS_TYPE, "Activations")


def _add_run_list(server: MCPServer[Session], session: Session) -> None:
    @server.resource(
        "scout://runs",
        name="runs",
        title="All runs",
        mime_type=JSON_TYPE,
        description="Every run that is kept, the newest first.",
    )
    def runs() -> str:
        summaries = session.list_run_summaries()[:_MAX_RUNS_LISTED]
        return json.dumps({"runs": [dataclasses.asdict(summary) for summary in summaries]})


def _add_documents(server: MCPServer[Session], session: Session) -> None:
    """Add the texts of a run, in which the paths of this machine are not shown."""

    def read_document(run_id: str, name: str) -> str:
        run = session.runs.open(run_id)
        text = read_bytes(resolve_inside(run.path, name)).decode()
        return session.allowed_paths.redact_run_text(text, run.record)

    @server.resource(
        "scout://runs/{run_id}/circuit.json",
        name="circuit",
        title="The circuit of a run",
        mime_type=JSON_TYPE,
        description="networkx node-link data: the circuit with its evaluation, verdict and "
        "provenance.",
    )
    def circuit(run_id: str) -> str:
        return read_document(run_id, "circuit.json")

    @server.resource(
        "scout://runs/{run_id}/run.json",
        name="run",
        title="What a run was asked",
        mime_type=JSON_TYPE,
        description="Configuration, model, status.",
    )
    def record(run_id: str) -> str:
        return read_document(run_id, "run.json")

    @server.resource(
        "scout://runs/{run_id}/report.html",
        name="report",
        title="The page of a run",
        mime_type="text/html",
        description="One self-contained page.",
    )
    def report(run_id: str) -> str:
        return read_document(run_id, "report.html")


def _add_run_files(server: MCPServer[Session], session: Session) -> None:
    """Add the figures and arrays of a run."""

    @server.resource(
        "scout://runs/{run_id}/figures/{name}",
        name="figure",
        title="A figure of a run",
        mime_type=PNG_TYPE,
        description="A picture.",
    )
    def figure(run_id: str, name: str) -> bytes:
        return session.runs.open(run_id).load_figure(name)

    @server.resource(
        "scout://runs/{run_id}/arrays/{name}",
        name="array",
        title="Full arrays of a run",
        mime_type=SAFETENSORS_TYPE,
        description="safetensors.",
    )
    def array(run_id: str, name: str) -> bytes:
        run = session.runs.open(run_id)
        run.array_metadata(name)  # checks the name, and that the array exists
        file_name = f"{name.removesuffix('.safetensors')}.safetensors"
        return read_bytes(run.path / "arrays" / file_name)


def _add_result_file(
    server: MCPServer[Session], session: Session, name: str, mime_type: str, title: str
) -> None:
    @server.resource(
        f"scout://results/{{result_id}}/{name}",
        name=name,
        title=f"{title} of a result",
        mime_type=mime_type,
        description="Kept in memory until the server ends.",
    )
    def result_file(result_id: str) -> bytes | str:
        content = session.artifacts.get(result_id, name)
        return content.decode() if mime_type == JSON_TYPE else content
