"""The server that `build_server` makes from settings.

`CircuitScoutServer` is the SDK's server with one boundary for errors. An error that a caller can
fix is answered with its text. Any other exception is a bug: it is answered with the id under which
the log holds its traceback. Every result also passes one boundary for what may leave the server
(`sendable`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
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
from mcp.server.mcpserver.prompts.base import PromptArgument
from mcp.shared.exceptions import MCPError
from mcp.types import INVALID_PARAMS, CallToolResult, GetPromptResult, InputRequiredResult
from pydantic import AnyUrl, ValidationError

from discovery.errors import DiscoveryError, Interrupted
from mcp_server.errors import LOG, log_bug
from mcp_server.prompts import add_prompts
from mcp_server.resources import add_resources
from mcp_server.server.sendable import Clean, clean_contents, clean_result, make_cleaner
from mcp_server.session import ServerSettings, Session
from mcp_server.tools.registry import TOOL_SPECS, build_tools, describe_missing_tools
from mcp_server.tools.schema import explain_argument_errors

NAME = "circuit-scout"
INSTRUCTIONS = """Circuit Scout finds the circuit (attention heads and MLPs) behind a language
model's behaviour and tests whether the claim holds.

Order of work: load_model(model="bundled") -> check_task (is the behaviour there?) ->
discover_circuit, or by hand: patch_sweep site=resid_pre, then head_out in both directions,
ablate_heads, evaluate_circuit -> get_circuit. The skill scout://skills/find-circuit says which
measurement comes next and when to stop. What does one head do? interpret_head, and the skill
scout://skills/interpret-head.

Handles (model_id, run_id) are plain arguments. A long discovery returns a run_id: poll run_status.
Verdicts are computed from held-out pairs and controls: verified, partial, rejected, inconclusive,
no_behaviour. Report them as they are, with their reasons."""
_MAX_SHOWN_NAME = 80  # characters of a name that does not exist
_MAX_WRONG_ARGUMENTS = 5  # that are named


class CircuitScoutServer(MCPServer[Session]):
    """The SDK's server, with errors that say what a caller can do.

    Attributes:
        session: what outlives a call.
    """

    session: Session

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Session, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool; the module docstring says how errors are answered."""
        try:
            result = await super().call_tool(name, arguments, context)
        except UnexpectedToolError as error:
            text = self._explain_error(name, error.__cause__ or error)
            raise ToolError(self._clean_error(text)) from None
        except ToolError as error:
            text = self._explain_refusal(name, error)
            raise ToolError(self._clean_error(text)) from None
        return clean_result(result, self._clean)

    async def read_resource(
        self, uri: AnyUrl | str, context: Context[Session, Any] | None = None
    ) -> Iterable[ReadResourceContents] | InputRequiredResult:
        """Read a resource; the module docstring says how errors are answered."""
        try:
            contents = await super().read_resource(uri, context)
        except UnexpectedResourceError as error:
            cause = _find_cause(error)
            if isinstance(cause, DiscoveryError):
                raise ResourceNotFoundError(self._clean_error(str(cause))) from None
            raise ResourceError(log_bug("a resource", cause)) from None
        if isinstance(contents, InputRequiredResult):
            return clean_result(contents, self._clean)
        return clean_contents(contents, self._clean)

    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        context: Context[Session, Any] | None = None,
    ) -> GetPromptResult | InputRequiredResult:
        """Get a prompt; an unknown prompt or a wrong argument is answered with what is allowed."""
        prompts = {
            prompt.name: prompt.arguments or [] for prompt in self._prompt_manager.list_prompts()
        }
        if name not in prompts:
            shown = name[:_MAX_SHOWN_NAME]
            raise MCPError(
                INVALID_PARAMS,
                f"There is no prompt {shown!r} here. The prompts are {', '.join(prompts)}.",
            )
        problem = _explain_prompt_arguments(name, prompts[name], list(arguments or {}))
        if problem is not None:
            raise MCPError(INVALID_PARAMS, problem)
        return await super().get_prompt(name, arguments, context)

    @property
    def _clean(self) -> Clean:
        """What every text of a result passes; a client on this machine may see its paths."""
        settings = self.session.settings
        return make_cleaner(None if settings.is_local else settings.redact_paths)

    @property
    def _clean_error(self) -> Clean:
        """What every error passes; the paths of this machine help no client to mend its call."""
        return make_cleaner(self.session.settings.redact_paths)

    def _explain_error(self, name: str, cause: BaseException) -> str:
        """Return the answer to an exception that a tool raised."""
        if isinstance(cause, DiscoveryError):
            if cause.detail:
                LOG.info("%s: %s Detail: %s", name, cause.cause, cause.detail)
            return str(cause)
        if isinstance(cause, Interrupted):
            return "The call was stopped before it was done, because the server ends.\nCall again."
        return log_bug(name, cause)

    def _explain_refusal(self, name: str, error: ToolError) -> str:
        """Return the answer to a call that the SDK refused before the tool ran."""
        tool = self._tool_manager.get_tool(name)
        if tool is not None:
            if isinstance(error.__cause__, ValidationError):
                return explain_argument_errors(tool, error.__cause__)
            return str(error)
        if name in {spec.name for spec in TOOL_SPECS}:
            reason = describe_missing_tools(self.session.settings)
            return f"{name} is switched off here.\n{reason}"
        tools = ", ".join(sorted(tool.name for tool in self._tool_manager.list_tools()))
        return f"There is no tool {name[:_MAX_SHOWN_NAME]!r} here.\nThe tools are {tools}."


def build_server(settings: ServerSettings | None = None) -> CircuitScoutServer:
    """Return a server with all tools, resources and prompts that the settings allow.

    Args:
        settings: as `circuit-scout serve` reads them; None takes the defaults.
    """
    session = Session(settings or ServerSettings())

    @asynccontextmanager
    async def lifespan(_: MCPServer[Session]) -> AsyncIterator[Session]:
        yield session

    missing_tools = describe_missing_tools(session.settings)
    server = CircuitScoutServer(
        NAME,
        title="Circuit Scout",
        description="Mechanistic interpretability: find the circuit behind a behaviour, and prove "
        "it.",
        instructions=" ".join(filter(None, (INSTRUCTIONS, missing_tools))),
        version=_version(),
        tools=build_tools(session.settings),
        lifespan=lifespan,
        log_level="WARNING",
    )
    server.session = session
    add_resources(server, session)
    add_prompts(server, missing_tools)
    return server


def _explain_prompt_arguments(
    name: str, parameters: Sequence[PromptArgument], arguments: Sequence[str]
) -> str | None:
    """Return what is wrong with the arguments of a prompt; None if nothing is."""
    names = [parameter.name for parameter in parameters]
    required = [parameter.name for parameter in parameters if parameter.required]
    problems = [
        f"There is no argument {argument[:_MAX_SHOWN_NAME]!r}."
        for argument in arguments[:_MAX_WRONG_ARGUMENTS]
        if argument not in names
    ]
    for argument in required:
        if argument not in arguments:
            problems.append(f"The argument {argument!r} is missing.")
    if not problems:
        return None
    takes = f"{name} takes: {', '.join(names)}; required: {', '.join(required) or 'none'}."
    return " ".join([*problems, takes])


def _find_cause(error: BaseException) -> BaseException:
    """Return the error that the SDK wrapped: the first that a caller can fix, or else the last."""
    while error.__cause__ is not None:
        error = error.__cause__
        if isinstance(error, DiscoveryError):
            break
    return error


def _version() -> str:
    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:
        return "0"
