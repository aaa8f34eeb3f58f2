"""Our server with the tools, resources and prompts that the official conformance suite calls.

`python -m tests.conformance.server PORT` serves it over HTTP, and `make conformance` runs the suite
against it. The suite prescribes these fixtures. They show that our subclass of the SDK's server,
its boundary for errors and its transport keep the protocol.
"""

from __future__ import annotations

import base64
import json
import sys
import warnings
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated, Any, Literal

import anyio
import mcp.types as protocol
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel, Field

from mcp_server.server.http import HttpEndpoint, listen, serve_http
from mcp_server.server.server import CircuitScoutServer, build_server
from mcp_server.session import ServerSettings

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEARKwAAIhYAQACABAAZGF0YQAAAAA="
MISSING_CAPABILITY = -32021


def make_fixture_server() -> CircuitScoutServer:
    server = build_server(ServerSettings(runs_dir=Path(mkdtemp()) / "runs"))
    for add in ADDITIONS:
        add(server)
    return server


def text(words: str) -> protocol.TextContent:
    return protocol.TextContent(type="text", text=words)


def image() -> protocol.ImageContent:
    return protocol.ImageContent(type="image", data=PNG, mime_type="image/png")


def embedded(uri: str, mime_type: str, words: str) -> protocol.EmbeddedResource:
    return protocol.EmbeddedResource(
        type="resource",
        resource=protocol.TextResourceContents(uri=uri, mime_type=mime_type, text=words),
    )


def add_content(server: CircuitScoutServer) -> None:
    """Add tools that give each kind of content."""

    @server.tool(structured_output=False)
    def test_simple_text() -> str:
        """Gives a text."""
        return "This is a simple text response for testing."

    @server.tool()
    def test_image_content() -> list[protocol.ImageContent]:
        """Gives a picture."""
        return [image()]

    @server.tool()
    def test_audio_content() -> list[protocol.AudioContent]:
        """Gives a sound."""
        return [protocol.AudioContent(type="audio", data=WAV, mime_type="audio/wav")]

    @server.tool()
    def test_embedded_resource() -> list[protocol.EmbeddedResource]:
        """Gives a resource."""
        return [
            embedded(
                "test://embedded-resource", "text/plain", "This is an embedded resource content."
            )
        ]

    @server.tool()
    def test_multiple_content_types() -> list[
        protocol.TextContent | protocol.ImageContent | protocol.EmbeddedResource
    ]:
        """Gives three kinds at once."""
        resource = embedded(
            "test://mixed-content-resource", "application/json", '{"test":"data","value":123}'
        )
        return [text("Multiple content types test:"), image(), resource]


def add_outcomes(server: CircuitScoutServer) -> None:
    """Add tools that fail, report progress, or need a capability of the client."""

    @server.tool(structured_output=False)
    def test_error_handling() -> str:
        """Fails on purpose."""
        raise ToolError("This tool intentionally returns an error for testing")

    @server.tool(structured_output=False)
    async def test_tool_with_progress(ctx: Context[Any, Any]) -> str:
        """Tells how far it is."""
        for done in (0, 50, 100):
            await ctx.report_progress(done, 100)
            await anyio.sleep(0.05)
        return "done"

    @server.tool(structured_output=False)
    async def test_missing_capability(ctx: Context[Any, Any]) -> str:
        """Needs a client that samples."""
        _need(ctx, "sampling")
        return "sampled"


class Person(BaseModel):
    username: str = Field(description="User's response")
    email: str = Field(description="User's email address")


class Defaults(BaseModel):
    name: str = "John Doe"
    age: int = 30
    score: float = 95.5
    status: Literal["active", "inactive", "pending"] = "active"
    verified: bool = True


def _titled(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"const": value, "title": title} for value, title in pairs]


class Enums(BaseModel):
    untitledSingle: Annotated[
        str, Field(json_schema_extra={"enum": ["option1", "option2", "option3"]})
    ]
    titledSingle: Annotated[
        str,
        Field(
            json_schema_extra={
                "oneOf": _titled(("value1", "First Option"), ("value2", "Second Option"))
            }
        ),
    ]
    legacyEnum: Annotated[
        str,
        Field(
            json_schema_extra={"enum": ["opt1", "opt2"], "enumNames": ["Option One", "Option Two"]}
        ),
    ]
    untitledMulti: Annotated[
        list[str],
        Field(json_schema_extra={"items": {"type": "string", "enum": ["option1", "option2"]}}),
    ]
    titledMulti: Annotated[
        list[str],
        Field(
            json_schema_extra={
                "items": {"anyOf": _titled(("value1", "First Choice"), ("value2", "Second"))}
            }
        ),
    ]


def add_legacy(server: CircuitScoutServer) -> None:
    """Add what only the handshake era has: logging, subscriptions, questions during a call."""

    @server.tool(structured_output=False)
    async def test_tool_with_logging(ctx: Context[Any, Any]) -> str:
        """Logs to the client."""
        for words in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await ctx.log("info", words)
            await anyio.sleep(0.05)
        return "logged"

    @server.tool(structured_output=False)
    async def test_sampling(prompt: str, ctx: Context[Any, Any]) -> str:
        """Has the client's model answer."""
        message = protocol.SamplingMessage(role="user", content=text(prompt))
        # On the stream of the call: the client's other stream may not be open yet, and then the
        # message would be lost.
        reply = await ctx.session.create_message(
            messages=[message], max_tokens=100, related_request_id=ctx.request_id
        )
        return f"LLM response: {getattr(reply.content, 'text', '')}"

    async def accept_request(ctx: Any, params: Any) -> protocol.EmptyResult:
        return protocol.EmptyResult()

    lowlevel = server._lowlevel_server
    subscriptions = {
        "resources/subscribe": protocol.SubscribeRequestParams,
        "resources/unsubscribe": protocol.UnsubscribeRequestParams,
    }
    lowlevel.add_request_handler("logging/setLevel", protocol.SetLevelRequestParams, accept_request)
    for method, parameters in subscriptions.items():
        lowlevel.add_request_handler(method, parameters, accept_request)


def add_legacy_elicitation(server: CircuitScoutServer) -> None:
    """Add tools that ask the user during a call, as in the handshake era."""

    async def elicit(ctx: Context[Any, Any], message: str, schema: type[BaseModel]) -> str:
        result = await ctx.elicit(message, schema)
        content = result.data.model_dump_json() if result.action == "accept" else "{}"
        return f"action={result.action}, content={content}"

    @server.tool(structured_output=False)
    async def test_elicitation(message: str, ctx: Context[Any, Any]) -> str:
        """Asks the user."""
        return f"User response: {await elicit(ctx, message, Person)}"

    @server.tool(structured_output=False)
    async def test_elicitation_sep1034_defaults(ctx: Context[Any, Any]) -> str:
        """Asks with defaults."""
        return f"Elicitation completed: {await elicit(ctx, 'Please confirm', Defaults)}"

    @server.tool(structured_output=False)
    async def test_elicitation_sep1330_enums(ctx: Context[Any, Any]) -> str:
        """Asks with choices."""
        return f"Elicitation completed: {await elicit(ctx, 'Please choose', Enums)}"


def _need(ctx: Context[Any, Any], name: str) -> None:
    if getattr(ctx.client_capabilities, name, None) is None:
        raise MCPError(
            code=MISSING_CAPABILITY,
            message=f"The client lacks {name}",
            data={"requiredCapabilities": {name: {}}},
        )


def ask(message: str, field: str, kind: str = "string") -> protocol.ElicitRequest:
    schema = {"type": "object", "properties": {field: {"type": kind}}, "required": [field]}
    return protocol.ElicitRequest(
        params=protocol.ElicitRequestFormParams(message=message, requested_schema=schema)
    )


def sample(prompt: str, tokens: int) -> protocol.CreateMessageRequest:
    message = protocol.SamplingMessage(role="user", content=text(prompt))
    return protocol.CreateMessageRequest(
        params=protocol.CreateMessageRequestParams(messages=[message], max_tokens=tokens)
    )


def ask_for_input(state: str | None = None, **requests: Any) -> protocol.InputRequiredResult:
    return protocol.InputRequiredResult(input_requests=requests, request_state=state)


Answer = protocol.CallToolResult | protocol.InputRequiredResult


def text_result(words: str) -> protocol.CallToolResult:
    return protocol.CallToolResult(content=[text(words)])


def content_of(ctx: Context[Any, Any], key: str) -> dict[str, Any] | None:
    """Return what the client answered to one request; None if it has not, or without content."""
    reply = (ctx.input_responses or {}).get(key)
    content = getattr(reply, "content", None)
    return content if isinstance(content, dict) else None


def add_input(server: CircuitScoutServer) -> None:
    """Add tools of the modern era: their results ask the client for one thing."""

    @server.tool()
    async def test_input_required_result_elicitation(ctx: Context[Any, Any]) -> Answer:
        """Asks for a name."""
        content = content_of(ctx, "user_name")
        if content and "name" in content:
            return text_result(f"Hello, {content['name']}!")
        return ask_for_input(user_name=ask("What is your name?", "name"))

    @server.tool()
    async def test_input_required_result_sampling(ctx: Context[Any, Any]) -> Answer:
        """Asks the client's model."""
        reply = (ctx.input_responses or {}).get("capital_question")
        if reply is None:
            return ask_for_input(capital_question=sample("What is the capital of France?", 100))
        return text_result(
            f"The model says: {getattr(getattr(reply, 'content', None), 'text', '')}"
        )

    @server.tool()
    async def test_input_required_result_list_roots(ctx: Context[Any, Any]) -> Answer:
        """Asks for roots."""
        reply = (ctx.input_responses or {}).get("client_roots")
        if reply is None:
            return ask_for_input(client_roots=protocol.ListRootsRequest())
        return text_result(f"Roots: {[str(root.uri) for root in getattr(reply, 'roots', [])]}")


def add_input_with_state(server: CircuitScoutServer) -> None:
    """Add tools of the modern era whose requests carry a state that comes back."""

    @server.tool()
    async def test_input_required_result_request_state(ctx: Context[Any, Any]) -> Answer:
        """Asks, with a state that comes back."""
        if ctx.request_state == "confirming" and content_of(ctx, "confirm"):
            return text_result("state-ok")
        return ask_for_input("confirming", confirm=ask("Please confirm", "ok", "boolean"))

    @server.tool()
    async def test_input_required_result_tampered_state(ctx: Context[Any, Any]) -> Answer:
        """Asks with a state; the SDK refuses a state that was changed."""
        if ctx.request_state == "confirming":
            return text_result("state-ok")
        return ask_for_input("confirming", confirm=ask("Please confirm", "ok", "boolean"))

    @server.tool()
    async def test_input_required_result_multiple_inputs(ctx: Context[Any, Any]) -> Answer:
        """Asks for three things at once."""
        if ctx.request_state == "three" and {"user_name", "greeting", "client_roots"} <= set(
            ctx.input_responses or {}
        ):
            return text_result("All three came.")
        requests = {
            "user_name": ask("What is your name?", "name"),
            "greeting": sample("Generate a greeting", 50),
            "client_roots": protocol.ListRootsRequest(),
        }
        return ask_for_input("three", **requests)

    @server.tool()
    async def test_input_required_result_multi_round(ctx: Context[Any, Any]) -> Answer:
        """Asks twice."""
        if ctx.request_state == "2" and content_of(ctx, "step2"):
            return text_result("Both steps are done.")
        if ctx.request_state == "1" and content_of(ctx, "step1"):
            return ask_for_input("2", step2=ask("Step 2: What is your favorite color?", "color"))
        return ask_for_input("1", step1=ask("Step 1: What is your name?", "name"))


def add_input_if_possible(server: CircuitScoutServer) -> None:
    """Add a tool that asks only for what the client can give, and a prompt that asks."""

    @server.tool()
    async def test_input_required_result_capabilities(ctx: Context[Any, Any]) -> Answer:
        """Asks only for what the client can give."""
        capabilities = ctx.client_capabilities
        requests: dict[str, Any] = {}
        if capabilities is not None and capabilities.elicitation is not None:
            requests["user_name"] = ask("What is your name?", "name")
        if capabilities is not None and capabilities.sampling is not None:
            requests["greeting"] = sample("Generate a greeting", 50)
        if requests and not ctx.input_responses:
            return ask_for_input(**requests)
        return text_result("Nothing to ask.")

    @server.prompt()
    async def test_input_required_result_prompt(
        ctx: Context[Any, Any],
    ) -> list[UserMessage] | protocol.InputRequiredResult:
        """A prompt that asks."""
        content = content_of(ctx, "user_context")
        if content:
            return [UserMessage(content=text(f"Context: {content['context']}"))]
        return ask_for_input(user_context=ask("What context should the prompt use?", "context"))


def add_resources(server: CircuitScoutServer) -> None:
    @server.resource("test://static-text", mime_type="text/plain", description="A text.")
    def static_text() -> str:
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", mime_type="image/png", description="A picture.")
    def static_binary() -> bytes:
        return base64.b64decode(PNG)

    @server.resource(
        "test://watched-resource", mime_type="text/plain", description="A text that is watched."
    )
    def watched() -> str:
        return "Watched."

    @server.resource(
        "test://template/{id}/data", mime_type="application/json", description="A template."
    )
    def template(id: str) -> str:
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


def add_prompts(server: CircuitScoutServer) -> None:
    @server.prompt()
    def test_simple_prompt() -> str:
        """A prompt."""
        return "This is a simple prompt for testing."

    @server.prompt()
    def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
        """A prompt with arguments."""
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @server.prompt()
    def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:
        """A prompt with a resource."""
        resource = embedded(resourceUri, "text/plain", "Embedded resource content for testing.")
        return [
            UserMessage(content=resource),
            UserMessage(content=text("Please process the embedded resource above.")),
        ]

    @server.prompt()
    def test_prompt_with_image() -> list[UserMessage]:
        """A prompt with a picture."""
        return [
            UserMessage(content=image()),
            UserMessage(content=text("Please analyze the image above.")),
        ]


ADDITIONS = (
    add_content,
    add_outcomes,
    add_legacy,
    add_legacy_elicitation,
    add_input,
    add_input_with_state,
    add_input_if_possible,
    add_resources,
    add_prompts,
)

if __name__ == "__main__":
    # Logging and sampling are deprecated, and the suite of the older revision asks for them.
    warnings.simplefilter("ignore")
    endpoint = HttpEndpoint(host="127.0.0.1", port=int(sys.argv[1]))
    raise SystemExit(serve_http(make_fixture_server(), *listen(endpoint)))
