"""The built-in tasks as resources."""

from __future__ import annotations

import json
from functools import partial

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError
from mcp.server.mcpserver.resources import FunctionResource

from discovery.tasks import BUILTIN
from mcp_server.session import Session


def add_tasks(server: MCPServer[Session]) -> None:
    """Each built-in task: what the model must do, how it is measured, and its wordings."""
    for (
        name
    ) in BUILTIN:  # each by itself too, for clients that list resources and know no templates
        server.add_resource(
            FunctionResource(
                uri=f"scout://tasks/{name}",
                name=f"task {name}",
                description=BUILTIN[name].summary,
                mime_type="application/json",
                fn=partial(_describe_task, name),
            )
        )

    @server.resource(
        "scout://tasks/{name}",
        name="task",
        title="A built-in task",
        mime_type="application/json",
        description="Its metric and wordings.",
    )
    def task(name: str) -> str:
        return _describe_task(name)


def _describe_task(name: str) -> str:
    if name not in BUILTIN:
        raise ResourceNotFoundError(
            f"There is no task {name[:80]!r}; there are {', '.join(BUILTIN)}."
        )
    found = BUILTIN[name]
    facts = {
        "name": found.name,
        "summary": found.summary,
        "metric": found.metric,
        "pairs": found.default_pairs,
        "templates": list(found.templates),
        "fields of a pair": ["clean", "corrupted", "answer", "wrong", "template", "labels"],
    }
    return json.dumps(facts, indent=2)
