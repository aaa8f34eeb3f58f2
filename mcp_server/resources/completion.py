"""Completion of names: models, tasks, runs and what is in them, skills."""

from __future__ import annotations

from collections.abc import Sequence

import anyio.to_thread
from mcp.server.mcpserver import MCPServer
from mcp.types import (
    Completion,
    CompletionArgument,
    CompletionContext,
    PromptReference,
    ResourceTemplateReference,
)

from discovery.errors import DiscoveryError
from discovery.store import run_ids
from discovery.tasks import BUILTIN
from mcp_server.resources.skills import list_skill_pages, list_skills
from mcp_server.session import Session

_MAX_COMPLETIONS = 100  # the protocol's limit


def add_completion(server: MCPServer[Session], session: Session) -> None:
    """Complete the arguments of prompts and resource templates."""

    @server.completion()  # type: ignore[no-untyped-call, untyped-decorator]  # the SDK's
    async def complete(
        ref: PromptReference | ResourceTemplateReference,
        argument: CompletionArgument,
        context: CompletionContext | None,
    ) -> Completion | None:
        uri = ref.uri if isinstance(ref, ResourceTemplateReference) else ""
        given = (context.arguments if context else None) or {}
        known = await anyio.to_thread.run_sync(
            _list_candidates, session, argument.name, str(uri), given
        )
        found = [name for name in known if name.lower().startswith(argument.value.lower())]
        found += [
            name for name in known if argument.value.lower() in name.lower() and name not in found
        ]
        return Completion(
            values=found[:_MAX_COMPLETIONS],
            total=len(found),
            has_more=len(found) > _MAX_COMPLETIONS,
        )


def _list_candidates(
    session: Session, argument: str, uri: str, given: dict[str, str]
) -> Sequence[str]:
    if argument == "model":
        loaded = [found.model_id for found in session.models.list_loaded()]
        return list(
            dict.fromkeys(
                [
                    "bundled",
                    *loaded,
                    *(
                        session.allowed_paths.format_path(str(path))
                        for path in session.allowed_paths.list_model_directories()
                    ),
                ]
            )
        )
    if argument in ("task", "behaviour") or uri.startswith("scout://tasks/"):
        return list(BUILTIN)
    if uri.startswith("scout://skills/"):
        return list_skill_pages(given.get("name")) if argument == "page" else list_skills()
    if argument == "run_id":
        return run_ids(session.settings.runs_dir)
    if argument == "result_id":
        return session.artifacts.list_ids()[::-1]
    if argument == "name" and "run_id" in given:
        try:
            run = session.runs.open(given["run_id"])
        except DiscoveryError:
            return []
        return run.figure_names() if "/figures/" in uri else run.array_ids()
    return []
