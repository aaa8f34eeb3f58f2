"""One server from settings: `build_server`.

`CircuitScoutServer` is the SDK's server with one boundary: what a caller can mend is told as it is, anything else by the id under which its
traceback stands in the log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import (
    ResourceError,
    ResourceNotFoundError,
    ToolError,
    UnexpectedResourceError,
    UnexpectedToolError,
)
from mcp.shared.exceptions import MCPError
from mcp.types import INVALID_PARAMS, CallToolResult, GetPromptResult, InputRequiredResult
from pydantic import AnyUrl, ValidationError

from discovery.errors import DiscoveryError, Interrupted
from mcp_server.errors import LOG, log_bug
from mcp_server.prompts import add_prompts
from mcp_server.resources import add_resources
from mcp_server.session import ServerSettings, Session
from mcp_server.tools.registry import TOOL_SPECS, build_tools, describe_missing_tools
from mcp_server.tools.schema import explain_argument_errors

NAME = "circuit-scout"
INSTRUCTIONS = """Circuit Scout finds the circuit (attention heads and MLPs) behind a language model's behaviour and proves it.

Order of work: load_model(model="bundled") -> check_task (is the behaviour there?) -> discover_circuit, or by hand: patch_sweep
site=resid_pre, then head_out in both directions, ablate_heads, evaluate_circuit -> get_circuit. The skill scout://skills/find-circuit
says which measurement comes next and when to stop.

Handles (model_id, run_id) are plain arguments. A long discovery returns a run_id: poll run_status. Verdicts are computed from held-out
pairs and controls: verified, partial, rejected, inconclusive, no_behaviour. Report them as they are, with their reasons."""


class CircuitScoutServer(MCPServer[Session]):
    """The server.

    Attributes:
        session: what outlives a call.
    """

    session: Session

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Session, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool; see the class for what a failure says."""
        try:
            return await super().call_tool(name, arguments, context)
        except UnexpectedToolError as fault:
            raise ToolError(self._explain_error(name, fault.__cause__ or fault)) from None
        except ToolError as fault:
            tool = self._tool_manager.get_tool(name)
            if tool is not None and isinstance(fault.__cause__, ValidationError):
                raise ToolError(explain_argument_errors(tool, fault.__cause__)) from None
            if tool is None:
                if name in {spec.name for spec in TOOL_SPECS}:
                    raise ToolError(
                        f"{name} is switched off here.\n{describe_missing_tools(self.session.settings)}"
                    ) from None
                known = ", ".join(sorted(tool.name for tool in self._tool_manager.list_tools()))
                raise ToolError(
                    f"There is no tool {name[:80]!r} here.\nThe tools are {known}."
                ) from None
            raise ToolError(self.session.settings.redact_paths(str(fault))) from None

    async def read_resource(
        self, uri: AnyUrl | str, context: Context[Session, Any] | None = None
    ) -> Iterable[ReadResourceContents] | InputRequiredResult:
        """Read a resource; see the class for what a failure says."""
        try:
            return await super().read_resource(uri, context)
        except UnexpectedResourceError as fault:
            cause = _root_cause(fault)
            if isinstance(cause, DiscoveryError):
                raise ResourceNotFoundError(
                    self.session.settings.redact_paths(str(cause))
                ) from None
            raise ResourceError(log_bug("a resource", cause)) from None

    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        context: Context[Session, Any] | None = None,
    ) -> GetPromptResult | InputRequiredResult:
        """Get a prompt; one that does not exist, or that takes other arguments, is told with what there is."""
        known = {
            prompt.name: prompt.arguments or [] for prompt in self._prompt_manager.list_prompts()
        }
        if name not in known:
            raise MCPError(
                INVALID_PARAMS,
                f"There is no prompt {name[:80]!r} here. The prompts are {', '.join(known)}.",
            )
        takes = {argument.name: bool(argument.required) for argument in known[name]}
        wrong = [
            f"There is no argument {given[:80]!r}."
            for given in list(arguments or {})[:5]
            if given not in takes
        ]
        wrong += [
            f"The argument {needed!r} is missing."
            for needed in takes
            if takes[needed] and needed not in (arguments or {})
        ]
        if wrong:
            required = ", ".join(needed for needed in takes if takes[needed]) or "none"
            raise MCPError(
                INVALID_PARAMS,
                " ".join([*wrong, f"{name} takes: {', '.join(takes)}; required: {required}."]),
            )
        return await super().get_prompt(name, arguments, context)

    def _explain_error(self, name: str, cause: BaseException) -> str:
        if isinstance(cause, DiscoveryError):
            if cause.detail:
                LOG.info("%s: %s It was told: %s", name, cause.cause, cause.detail)
            return self.session.settings.redact_paths(str(cause))
        if isinstance(cause, Interrupted):
            return "The call was stopped before it was done, because the server ends.\nCall again."
        return log_bug(name, cause)


def build_server(settings: ServerSettings | None = None) -> CircuitScoutServer:
    """The production server.

    Args:
        settings: as `circuit-scout serve` reads them; the defaults where None.
    """
    session = Session(settings or ServerSettings())

    @asynccontextmanager
    async def shared(_: MCPServer[Session]) -> AsyncIterator[Session]:
        yield session

    server = CircuitScoutServer(
        NAME,
        title="Circuit Scout",
        description="Mechanistic interpretability: find the circuit behind a behaviour, and prove it.",
        instructions=" ".join(
            filter(None, (INSTRUCTIONS, describe_missing_tools(session.settings)))
        ),
        version=_version(),
        tools=build_tools(session.settings),
        lifespan=shared,
        log_level="WARNING",
    )
    server.session = session
    add_resources(server, session)
    add_prompts(server, describe_missing_tools(session.settings))
    return server


def _root_cause(fault: BaseException) -> BaseException:
    while fault.__cause__ is not None:
        fault = fault.__cause__
    return fault


def _version() -> str:
    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:
        return "0"
