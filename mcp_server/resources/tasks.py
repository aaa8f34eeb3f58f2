"""The built-in tasks as resources."""

from __future__ import annotations

import json

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError

from discovery.tasks import BUILTIN
from mcp_server.session import Session


def add_tasks(server: MCPServer[Session]) -> None:
    """Each built-in task: what the model must do, how it is measured, and its wordings."""

    @server.resource(
        "scout://tasks/{name}",
        name="task",
        title="A built-in task",
        mime_type="application/json",
        description="What it asks, its metric and wordings.",
    )
    def task(name: str) -> str:
        if name not in BUILTIN:
            raise ResourceNotFoundError(f"There is no task {name[:80]!r}; there are {', '.join(BUILTIN)}.")
        found = BUILTIN[name]
        facts = {
            "name": found.name,
            "summary": found.summary,
            "metric": found.metric,
            "pairs": found.default_pairs,
            "templates": list(found.wordings),
            "fields of a pair": ["clean", "corrupted", "answer", "wrong", "template", "labels"],
        }
        return json.dumps(facts, indent=2)
