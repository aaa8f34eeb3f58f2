"""Over standard input and output: descriptor 1 carries protocol lines and nothing else, whatever libraries print.

Before anything that prints is imported, descriptor 1 and `sys.stdout` lead to standard error, and only the transport still has the
standard output that was there before.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress

import anyio
from mcp.server.stdio import stdio_server

from mcp_server.server.server import CircuitScoutServer

_GRACE_SECONDS = (
    1.5  # seconds for runs to close their folders; a client kills a server after about two
)


def serve_stdio(server: CircuitScoutServer) -> int:
    """Serve one client until it closes standard input; returns the exit status."""
    wire = os.fdopen(os.dup(1), "wb")
    source = os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    silent = os.open(os.devnull, os.O_RDONLY)
    os.dup2(silent, 0)  # a library that reads standard input must not eat the client's messages
    os.close(silent)
    with suppress(KeyboardInterrupt):
        anyio.run(_serve, server, source, wire)
    server.session.close(_GRACE_SECONDS)
    with suppress(OSError, ValueError):
        sys.stderr.flush()
        wire.flush()
    os._exit(
        0
    )  # a thread in the middle of a batch must not delay the end, nor torch's own threads crash it


async def _serve(
    server: CircuitScoutServer, source: io.BufferedReader, wire: io.BufferedWriter
) -> None:
    reader = anyio.wrap_file(io.TextIOWrapper(source, encoding="utf-8", errors="replace"))
    writer = anyio.wrap_file(io.TextIOWrapper(wire, encoding="utf-8"))
    lowlevel = server._lowlevel_server  # the SDK's own run_stdio_async takes no streams
    async with stdio_server(reader, writer) as (incoming, outgoing):
        await lowlevel.run(incoming, outgoing, lowlevel.create_initialization_options())
