"""Over HTTP: streamable HTTP at /mcp, behind a bearer token, with Host and Origin checked and bodies bounded."""

from __future__ import annotations

import errno
import hmac
import importlib
import os
import signal
import socket
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mcp.server.transport_security import TransportSecuritySettings

from discovery.cli.arguments import UsageError
from discovery.cli.console import write_to_stderr

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from mcp_server.server.server import CircuitScoutServer

ENDPOINT_PATH = "/mcp"
MAX_BODY_BYTES = 8 * 2**20  # bytes: inline pairs
_GRACE_SECONDS = 5  # seconds


@dataclass(frozen=True)
class HttpEndpoint:
    """Where clients come in.

    Attributes:
        token: that they must bear; None lets everyone on this machine in.
        names: further host names by which they may call.
    """

    host: str
    port: int
    token: str | None = None
    extra_hosts: tuple[str, ...] = ()

    @property
    def allowed_hosts(self) -> list[str]:
        """What the Host header may say."""
        told = {
            "127.0.0.1",
            "localhost",
            "[::1]",
            f"[{self.host}]" if ":" in self.host else self.host,
            *self.extra_hosts,
        }
        if self.host in ("0.0.0.0", "::"):
            told.add(socket.gethostname())
        return sorted(
            {
                f"{name}{port}"
                for name in told - {"0.0.0.0", "[::]"}
                for port in (f":{self.port}", "")
            }
        )


class BearerTokenMiddleware:
    """Lets only requests through that bear the token; an ASGI application around another."""

    def __init__(self, inner: ASGIApp, token: str) -> None:
        self._app = inner
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_authorized(scope):
            headers = [
                (b"www-authenticate", b'Bearer realm="circuit-scout"'),
                (b"content-type", b"application/json"),
            ]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send(
                {"type": "http.response.body", "body": b'{"error":"a bearer token is required"}'}
            )
            return
        await self._app(scope, receive, send)

    def _is_authorized(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.lstrip(b" "), self._token)


def build_asgi_app(server: CircuitScoutServer, door: HttpEndpoint) -> ASGIApp:
    """The server as an ASGI application."""
    origins = [f"{scheme}://{host}" for host in door.allowed_hosts for scheme in ("http", "https")]
    security = TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=door.allowed_hosts,
        allowed_origins=origins,
    )
    made: Any = server.streamable_http_app(
        streamable_http_path=ENDPOINT_PATH,
        host=door.host,
        transport_security=security,
        max_request_body_size=MAX_BODY_BYTES,
    )
    return BearerTokenMiddleware(made, door.token) if door.token is not None else made


def listen(door: HttpEndpoint) -> tuple[HttpEndpoint, socket.socket]:
    """Take the port.

    Returns:
        the door, with the port that was given where 0 was asked for, and what listens there.

    Raises:
        UsageError: where it is taken, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in door.host else socket.AF_INET
    try:
        taken = socket.create_server((door.host, door.port), family=family, backlog=2048)
    except OSError as fault:
        why = (
            os.strerror(fault.errno)
            if fault.errno is not None and fault.errno in errno.errorcode
            else str(fault.strerror or fault)
        )  # without the address again
        raise UsageError(
            f"--http {_format_address(door)}: {why}.",
            "Give another port, or an address of this machine: --http 127.0.0.1:8001.",
        ) from None
    return replace(door, port=taken.getsockname()[1]), taken


def _format_address(door: HttpEndpoint) -> str:
    return f"[{door.host}]:{door.port}" if ":" in door.host else f"{door.host}:{door.port}"


def serve_http(
    server: CircuitScoutServer, door: HttpEndpoint, listening_socket: socket.socket
) -> int:
    """Serve where `listen` took the port, until SIGINT or SIGTERM; ends the process then, with status 130, the runs' folders closed."""
    uvicorn = importlib.import_module("uvicorn")  # not needed over standard input and output
    config = uvicorn.Config(
        build_asgi_app(server, door), log_level="warning", timeout_graceful_shutdown=_GRACE_SECONDS
    )
    runner = uvicorn.Server(config)
    write_to_stderr(f"Listening at http://{_format_address(door)}{ENDPOINT_PATH}")
    told: list[int] = []  # uvicorn raises the signal that ended it again, once it has shut down
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: told.append(number))
    runner.run(sockets=[listening_socket])
    server.session.close(_GRACE_SECONDS)
    if told:
        sys.stderr.flush()
        os._exit(
            130
        )  # a thread in the middle of a batch must not delay the end, nor torch's own threads crash it
    return 0 if runner.started else 2
