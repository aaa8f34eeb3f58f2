"""What a client can read without a tool: runs, files of results, tasks and skills."""

from __future__ import annotations

from mcp.server.mcpserver import MCPServer

from mcp_server.resources.completion import add_completion
from mcp_server.resources.runs import add_run_resources
from mcp_server.resources.skills import add_skills
from mcp_server.resources.tasks import add_tasks
from mcp_server.session import Session

__all__ = ["add_resources"]


def add_resources(server: MCPServer[Session], session: Session) -> None:
    """Add the resources and the completion of their names to a server."""
    add_run_resources(server, session)
    add_tasks(server)
    add_skills(server)
    add_completion(server, session)
