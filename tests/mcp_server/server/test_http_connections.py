"""Connections that send no whole request are closed, and do not keep others out."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx2

from mcp_server.server.http import BearerTokenMiddleware, HttpEndpoint, listen, make_runner

TOKEN = "a-token-for-tests-0123"
BEARER = {"authorization": f"Bearer {TOKEN}"}
HALF_A_REQUEST = b"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\nx-slow: "
HEADER_SECONDS = 1.0


async def answer_ok(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def run_server(**limits: float) -> Iterator[tuple[str, int]]:
    """Run a server that asks for the token in a thread, and yield its address."""
    endpoint, listening_socket = listen(HttpEndpoint("127.0.0.1", 0))
    runner = make_runner(BearerTokenMiddleware(answer_ok, TOKEN), **limits)
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening_socket]})
    thread.start()
    try:
        while not runner.started:
            time.sleep(0.01)
        yield "127.0.0.1", endpoint.port
    finally:
        runner.should_exit = True
        thread.join(20)
        listening_socket.close()


def open_half(address: tuple[str, int], stack: ExitStack) -> socket.socket:
    """Open a connection that sends the half of its headers."""
    connection = stack.enter_context(socket.create_connection(address, timeout=20))
    connection.sendall(HALF_A_REQUEST)
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    """Return what the server sent before it closed the connection; fails if it stays open."""
    received = b""
    while True:
        try:
            part = connection.recv(1000)
        except ConnectionResetError:
            return received
        if not part:
            return received
        received += part


def is_let_in(address: tuple[str, int]) -> bool:
    url = f"http://{address[0]}:{address[1]}/"
    return httpx2.get(url, headers=BEARER, timeout=20).status_code == 200


def test_half_open_connections_are_closed_after_the_time_for_headers() -> None:
    with run_server(header_seconds=HEADER_SECONDS) as address, ExitStack() as stack:
        start = time.monotonic()
        connections = [open_half(address, stack) for _ in range(100)]
        silent = stack.enter_context(socket.create_connection(address, timeout=20))
        assert is_let_in(address)
        answers = [read_to_end(connection) for connection in (*connections, silent)]
        assert time.monotonic() - start < 15
    assert {answer.split(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 408 Request Timeout"}


def test_a_kept_connection_has_the_same_limit() -> None:
    request = f"GET / HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\r\n".encode()
    with run_server(header_seconds=HEADER_SECONDS) as address, ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(address, timeout=20))
        connection.sendall(request)
        time.sleep(HEADER_SECONDS * 1.5)  # between requests, only the time for idleness counts
        connection.sendall(request + HALF_A_REQUEST)
        assert read_to_end(connection).count(b"200 OK") == 2


def test_one_too_many_closes_the_oldest() -> None:
    with run_server(header_seconds=60, max_unknown=5) as address, ExitStack() as stack:
        connections = [open_half(address, stack) for _ in range(5)]
        connections += [open_half(address, stack) for _ in range(20)]
        assert [read_to_end(connection) for connection in connections[:20]] == [b""] * 20
        assert is_let_in(address)
        connections[-1].sendall(b"no\r\nconnection: close\r\n\r\n")  # still open, without a token
        assert read_to_end(connections[-1]).startswith(b"HTTP/1.1 401")


def test_a_connection_without_the_token_is_closed_after_the_answer() -> None:
    with run_server(header_seconds=60) as address, ExitStack() as stack:
        connection = open_half(address, stack)
        connection.sendall(b"no\r\ncontent-length: 1000000\r\n\r\n")  # whose body never comes
        answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 401")
    assert b"connection: close" in answer


def test_no_websocket_gets_around_the_token() -> None:
    with run_server() as address, ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(address, timeout=20))
        upgrade = (
            "GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        connection.sendall(upgrade.encode())
        assert read_to_end(connection).startswith(b"HTTP/1.1 401")
