"""The skills: Agent Skills that say how to use the tools, and that travel with the server."""

from __future__ import annotations

import importlib.resources
import re
from functools import partial
from pathlib import Path

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError
from mcp.server.mcpserver.resources import FunctionResource

from mcp_server.session import Session

_SKILL_NAME = re.compile(r"[a-z0-9][a-z0-9-]*(\.md)?")


def find_skills_dir() -> Path:
    """Return the folder of the skills: the packaged one, or else the one of the checkout."""
    packaged = Path(str(importlib.resources.files("mcp_server"))) / "skills"
    return packaged if packaged.is_dir() else packaged.parent.parent / "skills"


def list_skills() -> list[str]:
    """Return the name of every skill."""
    return sorted(path.parent.name for path in find_skills_dir().glob("*/SKILL.md"))


def list_skill_pages(name: str | None = None) -> list[str]:
    """Return the reference pages of a skill; None stands for all skills."""
    return sorted(
        {
            path.name
            for skill in list_skills()
            if name in (None, skill)
            for path in (find_skills_dir() / skill).glob("references/*.md")
        }
    )


def add_skills(server: MCPServer[Session]) -> None:
    """Add the skills and their reference pages to a server.

    Each skill is also added under its own URI, for clients that know no templates.
    """
    for skill_name in list_skills():
        server.add_resource(
            FunctionResource(
                uri=f"scout://skills/{skill_name}",
                name=f"skill {skill_name}",
                description="How to use the tools for one purpose: read it first.",
                mime_type="text/markdown",
                fn=partial(_read_skill_file, skill_name, "SKILL.md"),
            )
        )

    @server.resource(
        "scout://skills/{name}",
        name="skill",
        title="A skill",
        mime_type="text/markdown",
        description="How to use the tools for one purpose.",
    )
    def skill(name: str) -> str:
        return _read_skill_file(name, "SKILL.md")

    @server.resource(
        "scout://skills/{name}/references/{page}",
        name="skill reference",
        title="A page of a skill",
        mime_type="text/markdown",
        description="Read when the skill says so.",
    )
    def reference(name: str, page: str) -> str:
        return _read_skill_file(name, "references", page if page.endswith(".md") else f"{page}.md")


def _read_skill_file(name: str, *parts: str) -> str:
    """Return the text of a file of a skill.

    Raises:
        ResourceNotFoundError: if there is no such file; names the skills that there are.
    """
    skills = ", ".join(list_skills())
    if not all(_SKILL_NAME.fullmatch(word) for word in (name, *map(str.lower, parts))):
        raise ResourceNotFoundError(f"There is no skill {name[:80]!r}; there are {skills}.")
    path = find_skills_dir().joinpath(name, *parts)
    if not path.is_file():
        shown = "/".join((name, *parts))[:120]
        raise ResourceNotFoundError(f"There is no {shown}; skills: {skills}.")
    return path.read_text(encoding="utf-8")
