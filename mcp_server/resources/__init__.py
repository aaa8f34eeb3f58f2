"""What can be read besides calling tools: runs, results, tasks and skills; and completion of their names."""

from __future__ import annotations

from mcp.server.mcpserver import MCPServer

from mcp_server.resources.completion import add_completion
from mcp_server.resources.runs import add_run_resources
from mcp_server.resources.skills import add_skills, find_skills_dir, list_skills
from mcp_server.resources.tasks import add_tasks
from mcp_server.session import Session

__all__ = ["add_resources", "find_skills_dir", "list_skills"]


def add_resources(server: MCPServer[Session], session: Session) -> None:
    """Give a server its resources."""
    add_run_resources(server, session)
    add_tasks(server)
    add_skills(server)
    add_completion(server, session)
