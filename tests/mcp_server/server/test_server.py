"""The boundary for errors: a bug is answered with its number only."""

from __future__ import annotations

import pytest
from mcp import Client

from mcp_server.server.server import CircuitScoutServer
from tests.mcp_server.servers import (
    INDUCTION_TASK,
    call_tool_error,
    call_tool_ok,
)

pytestmark = pytest.mark.anyio


async def test_a_bug_is_told_by_its_number_only(
    server: CircuitScoutServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mcp_server.session import lazy_discovery

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("/secret/path and a token")

    monkeypatch.setattr(lazy_discovery, "check_task", broken, raising=False)
    async with Client(server) as client:
        await call_tool_ok(client, "load_model", model="induction")
        text = await call_tool_error(
            client, "check_task", model_id="induction", task=INDUCTION_TASK
        )
    assert "secret" not in text
    number = text.split("Internal error ")[1].split()[0]
    assert number in caplog.text
    assert "/secret/path" in caplog.text
