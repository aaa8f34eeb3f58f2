"""Connections over HTTP that send no whole request do not stay open.

uvicorn bounds how long a connection may be idle between requests, but not how long a client may
take to send the headers of one. So anyone who can reach the port could hold connections open
without a token, until the process has no descriptors left. Here the headers of a request have a
time limit. Connections that have not sent the headers of their first request yet are bounded in
number as well: one more closes the oldest of them. A request without the right token is answered
with `connection: close` (see `BearerTokenMiddleware`), so every connection that stays open belongs
to a client that may call the server.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
MAX_UNKNOWN_CONNECTIONS = 128
_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class ConnectionGuard:
    """The limits, and the connections of one server that have not sent their first headers yet.

    Args:
        header_seconds: the time for the headers of a request, from the opening of the connection
            or from their first byte.
        max_unknown: how many connections may be open before their first headers are there.
    """

    def __init__(
        self,
        header_seconds: float = HEADER_SECONDS,
        max_unknown: int = MAX_UNKNOWN_CONNECTIONS,
    ) -> None:
        self.header_seconds = header_seconds
        self.max_unknown = max_unknown
        self._unknown: dict[GuardedProtocol, None] = {}  # the oldest first

    def make_protocol(self, **options: Any) -> GuardedProtocol:
        """Return the protocol of a new connection, as uvicorn asks for it."""
        return GuardedProtocol(self, **options)

    def enter(self, connection: GuardedProtocol) -> None:
        """Note a new connection, and close the oldest ones that are one too many."""
        self._unknown[connection] = None
        while len(self._unknown) > self.max_unknown:
            oldest = next(iter(self._unknown))
            self.leave(oldest)
            oldest.transport.abort()

    def leave(self, connection: GuardedProtocol) -> None:
        """Forget a connection, which sent its headers or was closed."""
        self._unknown.pop(connection, None)


class GuardedProtocol(H11Protocol):
    """One connection, as uvicorn has it, with a time limit for the headers of each request."""

    def __init__(self, guard: ConnectionGuard, **options: Any) -> None:
        super().__init__(**options)
        self._guard = guard
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time for the first headers."""
        super().connection_made(transport)
        self._start_header_timer()
        self._guard.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_header_timer()
        self._guard.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what has come, and start or stop the time for the headers."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_header_timer()
            self._guard.leave(self)
        elif self._header_timer is None:
            self._start_header_timer()

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(
            self._guard.header_seconds, self._close_if_headers_are_missing
        )

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _close_if_headers_are_missing(self) -> None:
        self._header_timer = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.write(_TOO_LATE)
            self.transport.close()
