"""A server over HTTP: who may call it, how much they may send, and many clients at once."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from discovery.cli.arguments import UsageError
from mcp_server.__main__ import main
from mcp_server.server.command import parse_serve_arguments
from mcp_server.server.http import MAX_BODY_BYTES, HttpEndpoint, listen
from tests.mcp_server.servers import (
    HELLO,
    INDUCTION_TASK,
    call_tool_ok,
    run_http_server,
    server_environment,
)

TOKEN = "a-token-for-tests-0123"
INITIALIZE = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO}
ACCEPT = {"accept": "application/json, text/event-stream", "content-type": "application/json"}


@pytest.fixture(scope="module")
def url(models: Path, shared_runs: Path) -> Iterator[str]:
    with run_http_server(models, shared_runs, CIRCUIT_SCOUT_TOKEN=TOKEN) as address:
        yield address


def post(url: str, **headers: str) -> int:
    return httpx2.post(url, json=INITIALIZE, headers={**ACCEPT, **headers}, timeout=30).status_code


def test_the_token_is_asked_for(url: str) -> None:
    bearer = {"authorization": f"Bearer {TOKEN}"}
    refused = httpx2.post(url, json=INITIALIZE, headers=ACCEPT, timeout=30)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (
        401,
        'Bearer realm="circuit-scout"',
    )
    assert TOKEN not in refused.text
    assert post(url, authorization=f"Bearer {TOKEN}x") == 401
    assert post(url, authorization=TOKEN) == 401
    assert post(url, authorization=f"Basic {TOKEN}") == 401
    assert post(url, authorization="Bearer") == 401
    assert post(url, **bearer) == 200
    assert post(url, authorization=f"bearer {TOKEN}") == 200  # RFC 7235: the scheme in any case


def test_host_and_origin_are_checked(url: str) -> None:
    bearer = {"authorization": f"Bearer {TOKEN}"}
    assert post(url, **bearer, host="evil.example") == 421
    assert post(url, **bearer, origin="http://evil.example") == 403
    assert post(url, **bearer, origin=url.removesuffix("/mcp")) == 200


def test_a_body_is_bounded(url: str) -> None:
    headers = {**ACCEPT, "authorization": f"Bearer {TOKEN}"}
    large = httpx2.post(url, content=b" " * (MAX_BODY_BYTES + 1), headers=headers, timeout=60)
    assert large.status_code == 413


@pytest.mark.anyio
async def test_fifty_clients_at_once(url: str) -> None:
    finished = 0

    async def connect_and_sweep(number: int) -> None:
        nonlocal finished
        async with (
            httpx2.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}, timeout=200) as http,
            Client(
                streamable_http_client(url, http_client=http), mode=("auto", "legacy")[number % 2]
            ) as client,
        ):
            await call_tool_ok(client, "load_model", model="induction")
            result = await call_tool_ok(
                client,
                "patch_sweep",
                model_id="induction",
                task=INDUCTION_TASK,
                site="head_out",
                pairs=4,
                seed=number,
            )
            assert {cell["node"] for cell in result["top"][:2]} == {"a0.h2", "a1.h1"}
            finished += 1

    with anyio.fail_after(280):
        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(connect_and_sweep, number)
    assert finished == 50


@pytest.mark.parametrize(
    "address", ["0.0.0.0:8000", "[::]:8000", "192.168.1.5:80", "example.org:80"]
)
def test_beyond_this_machine_a_token_is_required(address: str) -> None:
    with pytest.raises(UsageError, match="there is no token"):
        parse_serve_arguments(["--http", address])
    settings, endpoint = parse_serve_arguments(["--http", address, "--token", TOKEN])
    assert endpoint is not None
    assert endpoint.token == TOKEN
    assert settings.working_dir is None
    assert not settings.is_local


def test_names_that_the_host_header_may_give() -> None:
    assert "127.0.0.1:8000" in HttpEndpoint("127.0.0.1", 8000).allowed_hosts
    everywhere = HttpEndpoint("0.0.0.0", 8000, TOKEN, ("lab.example",)).allowed_hosts
    assert "lab.example:8000" in everywhere
    assert f"{socket.gethostname()}:8000" in everywhere
    assert not any(name.startswith("0.0.0.0") for name in everywhere)


def test_a_port_that_is_taken_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--http", f"127.0.0.1:{port}"]) == 2
    message = capfd.readouterr().err
    assert message.startswith(
        f"error: --http 127.0.0.1:{port}: Address already in use.\nfix: Give another port"
    )


def test_an_address_of_another_machine_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--http", "192.0.2.1:8000", "--token", TOKEN]) == 2
    assert "fix: " in capfd.readouterr().err


def test_small_packets_are_sent_at_once() -> None:
    """Without TCP_NODELAY every call on a kept connection takes 40 ms longer."""
    endpoint, listening_socket = listen(HttpEndpoint("127.0.0.1", 0))
    with listening_socket, socket.create_connection(("127.0.0.1", endpoint.port)):
        accepted, _ = listening_socket.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_it_says_where_it_listens(models: Path, runs_dir: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "mcp_server",
        "serve",
        "--http",
        "127.0.0.1:0",
        "--models-dir",
        str(models),
    ]
    with subprocess.Popen(
        words, env=server_environment(runs_dir), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr
            announcement = re.fullmatch(
                r"Listening at (http://127\.0\.0\.1:\d+/mcp)\n", process.stderr.readline()
            )
            assert announcement
            assert post(announcement[1]) == 200
        finally:
            process.terminate()
