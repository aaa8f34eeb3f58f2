"""The server over standard input and output.

Descriptor 1 carries protocol lines and nothing else, whatever libraries print. Before anything that
prints is imported, descriptor 1 and `sys.stdout` lead to standard error, and only the transport
still has the standard output that was there before. Every request is answered: `request_lines`
answers those that the SDK would drop.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any, NoReturn, cast

import anyio
from mcp.server.stdio import stdio_server

from mcp_server.server.request_lines import LineOutput, readable_lines
from mcp_server.server.server import CircuitScoutServer

# For runs to close their folders; a client kills a server after about two seconds.
_GRACE_SECONDS = 1.5


def serve_stdio(server: CircuitScoutServer) -> NoReturn:
    """Serve one client until it closes standard input, then end the process with status 0."""
    protocol_output = os.fdopen(os.dup(1), "wb")
    protocol_input = os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)  # a library that reads standard input must not eat the client's messages
    os.close(null)
    with suppress(KeyboardInterrupt):
        anyio.run(_serve, server, protocol_input, protocol_output)
    server.session.close(_GRACE_SECONDS)
    with suppress(OSError, ValueError):
        sys.stderr.flush()
        protocol_output.flush()
    # A thread in the middle of a batch must not delay the end, and torch's threads must not
    # crash it.
    os._exit(0)


async def _serve(
    server: CircuitScoutServer, source: io.BufferedReader, target: io.BufferedWriter
) -> None:
    # Only a newline ends a line: a carriage return is white space in JSON.
    text = io.TextIOWrapper(source, encoding="utf-8", errors="replace", newline="\n")
    output = LineOutput(anyio.wrap_file(io.TextIOWrapper(target, encoding="utf-8", newline="\n")))
    # The SDK iterates over the one and writes to the other, and needs nothing else of a file.
    reader = cast(Any, readable_lines(anyio.wrap_file(text), output))
    lowlevel = server._lowlevel_server  # the SDK's own run_stdio_async takes no streams
    async with stdio_server(reader, cast(Any, output)) as (incoming, outgoing):
        await lowlevel.run(incoming, outgoing, lowlevel.create_initialization_options())
