"""Completion of the names of models, tasks, runs and their files, results and skills."""

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

from discovery.backends.loading.source import BUNDLED
from discovery.errors import DiscoveryError
from discovery.store import run_ids
from discovery.tasks import BUILTIN
from mcp_server.resources.skills import list_skill_pages, list_skills
from mcp_server.session import Session

_MAX_COMPLETIONS = 100  # the protocol's limit


def add_completion(server: MCPServer[Session], session: Session) -> None:
    """Let a server complete the arguments of prompts and resource templates.

    Names that begin with the typed text come first, then names that contain it.
    """

    @server.completion()  # type: ignore[no-untyped-call, untyped-decorator]  # the SDK's
    async def complete(
        ref: PromptReference | ResourceTemplateReference,
        argument: CompletionArgument,
        context: CompletionContext | None,
    ) -> Completion | None:
        uri = ref.uri if isinstance(ref, ResourceTemplateReference) else ""
        arguments = (context.arguments if context else None) or {}
        names = await anyio.to_thread.run_sync(
            _list_candidates, session, argument.name, str(uri), arguments
        )
        matches = _match_names(names, argument.value.lower())
        return Completion(
            values=matches[:_MAX_COMPLETIONS],
            total=len(matches),
            has_more=len(matches) > _MAX_COMPLETIONS,
        )


def _match_names(names: Sequence[str], text: str) -> list[str]:
    beginning = [name for name in names if name.lower().startswith(text)]
    containing = [name for name in names if text in name.lower() and name not in beginning]
    return beginning + containing


def _list_candidates(
    session: Session, argument: str, uri: str, arguments: dict[str, str]
) -> Sequence[str]:
    """Return every name that an argument may have, given the other arguments."""
    if argument == "model":
        return _list_models(session)
    if argument in ("task", "behaviour") or uri.startswith("scout://tasks/"):
        return list(BUILTIN)
    if uri.startswith("scout://skills/"):
        return list_skill_pages(arguments.get("name")) if argument == "page" else list_skills()
    if argument == "run_id":
        return run_ids(session.settings.runs_dir)
    if argument == "result_id":
        return session.artifacts.list_ids()[::-1]
    if argument == "name" and "run_id" in arguments:
        try:
            run = session.runs.open(arguments["run_id"])
        except DiscoveryError:
            return []
        return run.figure_names() if "/figures/" in uri else run.array_ids()
    return []


def _list_models(session: Session) -> list[str]:
    loaded = [model.model_id for model in session.models.list_loaded()]
    paths = session.allowed_paths
    directories = [paths.format_path(str(path)) for path in paths.list_models()]
    return list(dict.fromkeys([BUNDLED, *loaded, *directories]))
