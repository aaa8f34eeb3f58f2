"""Every line on standard input gets an answer, also one that is no request.

The SDK's transport (mcp 2.3.0) hands a line that it cannot read to the session as an exception, and
the session drops it. A client without a time limit then waits for ever: for a lone surrogate or a
raw NUL in a string, a batch, deep nesting, or an integer of thousands of digits. Here such a line
is answered with a JSON-RPC error, which carries the request's id if the line shows it, and never
reaches the SDK.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio
from mcp.types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    JSONRPCNotification,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError

from mcp_server.errors import LOG

# A string, a string without an end, a bracket or another mark, or the letters of anything else.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|"|[\[\]{},:]|[^\s"\[\]{},:]+', re.DOTALL)
_NUMBER = re.compile(r"-?\d{1,300}(\.\d{1,300})?([eE][+-]?\d{1,3})?")
_ONE_A_LINE = "Send one JSON-RPC request on each line."
_NO_BATCHES = "Batches are not part of MCP since its revision 2025-06-18."
_MAX_REASON = 300  # characters of what is wrong with a message

RequestId = int | float | str | None


class LineOutput:
    """Standard output as the transport writes it: one whole line at a time.

    The transport and the answers to unreadable lines write at the same time.
    """

    def __init__(self, file: anyio.AsyncFile[str]) -> None:
        self._file = file
        self._lock = anyio.Lock()

    async def write(self, text: str) -> None:
        """Write and flush a text that ends with a newline."""
        async with self._lock:
            await self._file.write(text)
            await self._file.flush()

    async def flush(self) -> None:
        """Do nothing, because `write` flushes."""


async def readable_lines(source: AsyncIterable[str], output: LineOutput) -> AsyncIterator[str]:
    """Yield the lines that hold a message, and answer the others."""
    async for line in source:
        if not line.strip():
            continue
        problem = find_problem(line)
        if problem is None:
            yield line
            continue
        LOG.warning("a line of %d characters is no request: %s", len(line), problem.reason)
        for request_id in find_request_ids(line):
            await output.write(_format_error(request_id, problem))


@dataclass(frozen=True)
class LineProblem:
    """Why a line is no message.

    Attributes:
        code: the JSON-RPC error code.
        reason: what is wrong, and what to send instead.
    """

    code: int
    reason: str


def find_problem(line: str) -> LineProblem | None:
    """Return why a line is no JSON-RPC message; None if it is one."""
    try:
        message = jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValidationError as error:
        return _describe_problem(line, error)
    # The SDK takes a request whose id is null, true or 1.5 for a notification, and answers nothing.
    if isinstance(message, JSONRPCNotification) and any(
        "id" in envelope.names for envelope in _read_envelopes(line)
    ):
        return LineProblem(INVALID_REQUEST, "The id must be a string or an integer.")
    return None


def _describe_problem(line: str, error: ValidationError) -> LineProblem:
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return LineProblem(PARSE_ERROR, f"{first['msg'][:_MAX_REASON]}. {_ONE_A_LINE}")
    if line.lstrip().startswith("["):
        return LineProblem(INVALID_REQUEST, f"{_NO_BATCHES} {_ONE_A_LINE}")
    place = ".".join(map(str, first["loc"][1:])) or "message"
    reason = f"{place}: {first['msg'][:_MAX_REASON]}"
    return LineProblem(INVALID_REQUEST, f"Not a JSON-RPC 2.0 request ({reason}). {_ONE_A_LINE}")


def find_request_ids(line: str) -> list[RequestId]:
    """Return the id of each request in a line, which need not be valid JSON; None if unknown.

    There is at least one. A response of the client, which is no request, has none either.
    """
    requests = [
        envelope.request_id
        for envelope in _read_envelopes(line)
        if "method" in envelope.names or not envelope.names & {"result", "error"}
    ]
    return requests or [None]


@dataclass
class _Envelope:
    """The outermost names of a JSON object, and its id if that is a string or a number."""

    names: set[str] = field(default_factory=set)
    request_id: RequestId = None


def _read_envelopes(line: str) -> Iterator[_Envelope]:
    """Yield the outermost object of a line, or each object of the outermost array.

    The text is read mark by mark, without recursion, as far as it goes.
    """
    envelope_depth = 2 if line.lstrip().startswith("[") else 1
    envelope: _Envelope | None = None
    depth = 0
    name: str | None = None  # of the value that comes next
    before = ""
    for match in _TOKEN.finditer(line):
        token = match[0]
        if token == '"':
            break
        if envelope is not None and depth == envelope_depth:
            if token == ":" and before.startswith('"'):
                name = before[1:-1]
                envelope.names.add(name)
            elif before == ":" and name == "id":
                envelope.request_id = _parse_id(token)
        if token in "{[":
            depth += 1
            if token == "{" and depth == envelope_depth:
                envelope = _Envelope()
        elif token in "}]":
            depth -= 1
            if envelope is not None and depth < envelope_depth:
                yield envelope
                envelope = None
        before = token
    if envelope is not None:
        yield envelope


def _parse_id(token: str) -> RequestId:
    if token.startswith('"'):
        try:
            text: str = json.loads(token, strict=False)
        except ValueError:
            return None
        return text
    if not _NUMBER.fullmatch(token):
        return None
    number: int | float = json.loads(token) if token.lstrip("-").isdigit() else float(token)
    return number if math.isfinite(number) else None


def _format_error(request_id: RequestId, problem: LineProblem) -> str:
    error: dict[str, Any] = {"code": problem.code, "message": problem.reason}
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "error": error}) + "\n"
