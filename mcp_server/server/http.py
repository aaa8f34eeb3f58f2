"""The server over streamable HTTP, at /mcp.

A bearer token guards it, the headers Host and Origin are checked against DNS rebinding, the size of
a body is bounded, and so are the time for the headers of a request and the number of connections
that have not sent any (`http_connections`).
"""

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
    import uvicorn
    from starlette.types import ASGIApp, Receive, Scope, Send

    from mcp_server.server.server import CircuitScoutServer

ENDPOINT_PATH = "/mcp"
MAX_BODY_BYTES = 8 * 2**20  # enough for inline pairs
_GRACE_SECONDS = 5  # for open requests and runs, when the server ends
_ANY_ADDRESS = ("0.0.0.0", "::")
_BACKLOG = 2048  # connections that may wait to be accepted


@dataclass(frozen=True)
class HttpEndpoint:
    """Where a server listens, and who may call it.

    Attributes:
        host: the address or name of this machine.
        port: the port; 0 lets the system choose one.
        token: the token that clients must send; None lets everyone on this machine in.
        extra_hosts: further host names by which clients may call the server.
    """

    host: str
    port: int
    token: str | None = None
    extra_hosts: tuple[str, ...] = ()

    @property
    def allowed_hosts(self) -> list[str]:
        """What the Host header of a request may say: each name with the port and without."""
        names = {"127.0.0.1", "localhost", "[::1]", *self.extra_hosts}
        if self.host in _ANY_ADDRESS:
            names.add(socket.gethostname())
        else:
            names.add(f"[{self.host}]" if ":" in self.host else self.host)
        names -= {"0.0.0.0", "[::]"}
        return sorted({f"{name}{port}" for name in names for port in (f":{self.port}", "")})

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class BearerTokenMiddleware:
    """An ASGI application that passes on only those requests that carry the token.

    The connection of any other request is closed after the answer.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_authorized(scope):
            headers = [
                (b"www-authenticate", b'Bearer realm="circuit-scout"'),
                (b"content-type", b"application/json"),
                (b"connection", b"close"),
            ]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send(
                {"type": "http.response.body", "body": b'{"error":"a bearer token is required"}'}
            )
            return
        await self._app(scope, receive, send)

    def _is_authorized(self, scope: Scope) -> bool:
        headers = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        if len(headers) != 1:
            return False
        scheme, _, token = headers[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.lstrip(b" "), self._token)


def build_asgi_app(server: CircuitScoutServer, endpoint: HttpEndpoint) -> ASGIApp:
    """Return the server as an ASGI application."""
    hosts = endpoint.allowed_hosts
    security = TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=hosts,
        allowed_origins=[f"{scheme}://{host}" for host in hosts for scheme in ("http", "https")],
    )
    app: Any = server.streamable_http_app(
        streamable_http_path=ENDPOINT_PATH,
        host=endpoint.host,
        transport_security=security,
        max_request_body_size=MAX_BODY_BYTES,
    )
    return app if endpoint.token is None else BearerTokenMiddleware(app, endpoint.token)


def listen(endpoint: HttpEndpoint) -> tuple[HttpEndpoint, socket.socket]:
    """Open the port.

    Returns:
        The endpoint, with the port that the system chose if 0 was asked for, and the socket.

    Raises:
        UsageError: if the port is in use, or the address does not belong to this machine.
    """
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    address = (endpoint.host, endpoint.port)
    try:
        listening_socket = socket.create_server(address, family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UsageError(
            f"--http {endpoint}: {_describe_os_error(error)}.",
            "Give another port, or an address of this machine: --http 127.0.0.1:8001.",
        ) from None
    # Accepted connections inherit this. Without it, the body of a response waits for the client's
    # delayed acknowledgement of its headers: about 40 ms for every call on a kept connection.
    listening_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return replace(endpoint, port=listening_socket.getsockname()[1]), listening_socket


def _describe_os_error(error: OSError) -> str:
    """Return the reason without the address, which the message already has."""
    if error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    return str(error.strerror or error)


def make_runner(app: ASGIApp, **limits: float) -> uvicorn.Server:
    """Return what runs an ASGI application, with bounds on connections.

    Args:
        app: the application.
        limits: other limits than the default ones, as `ConnectionGuard` takes them.
    """
    # Neither is needed over standard input and output.
    uvicorn_module = importlib.import_module("uvicorn")
    connections = importlib.import_module("mcp_server.server.http_connections")
    config = uvicorn_module.Config(
        app,
        http=connections.ConnectionGuard(**limits).make_protocol,
        ws="none",
        log_level="warning",
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    runner: uvicorn.Server = uvicorn_module.Server(config)
    return runner


def serve_http(
    server: CircuitScoutServer, endpoint: HttpEndpoint, listening_socket: socket.socket
) -> int:
    """Serve on the socket that `listen` opened, until SIGINT or SIGTERM.

    A signal ends the process with status 130, after the folders of the runs are closed.

    Returns:
        0 if the server ended without a signal, 2 if it could not start.
    """
    runner = make_runner(build_asgi_app(server, endpoint))
    write_to_stderr(f"Listening at http://{endpoint}{ENDPOINT_PATH}")
    # uvicorn handles the signal, shuts down, and then raises the signal again for these handlers.
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    runner.run(sockets=[listening_socket])
    server.session.close(_GRACE_SECONDS)
    if signals:
        sys.stderr.flush()
        # A thread in the middle of a batch must not delay the end, and torch's threads must not
        # crash it.
        os._exit(130)
    return 0 if runner.started else 2
