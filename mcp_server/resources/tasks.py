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
    """Add the built-in tasks to a server: what the model must do, the metric, and the wordings.

    Each task is also added under its own URI, for clients that know no templates.
    """
    for name in BUILTIN:
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
    task = BUILTIN[name]
    facts = {
        "name": task.name,
        "summary": task.summary,
        "metric": task.metric,
        "pairs": task.default_pairs,
        "templates": list(task.templates),
        "fields of a pair": ["clean", "corrupted", "answer", "wrong", "template", "labels"],
    }
    return json.dumps(facts, indent=2)
