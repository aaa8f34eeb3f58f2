"""list_runs: page by page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from discovery.store import ModelSource, create_run
from tests.mcp_server.servers import (
    call_tool_error,
    call_tool_ok,
    make_server,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, list[str]]:
    """Runs whose ids do not say when they began; the ids, the newest first."""
    ids = []
    for n in range(90):
        with create_run(tmp_path, "ioi", ModelSource(name="a-model-of-some-length"), {}) as run:
            path = run.path / "run.json"
        path.write_text(
            json.dumps(
                json.loads(path.read_text())
                | {"created": f"2026-01-{1 + n % 28:02}T{n // 28:02}:00:00.000Z"}
            )
        )
        ids.append((n % 28, n // 28, path.parent.name))
    return tmp_path, [name for *_, name in sorted(ids, reverse=True)]


async def test_runs_are_listed_page_by_page(runs: tuple[Path, list[str]], models: Path) -> None:
    runs_dir, newest = runs
    async with Client(make_server(models, runs_dir)) as client:
        listed: list[str] = []
        arguments: dict[str, Any] = {"top": 200}
        while True:
            result = await call_tool_ok(client, "list_runs", **arguments)
            page = [run["run_id"] for run in result["runs"]]
            listed += page
            assert result["total"] == 90
            assert len(json.dumps(result)) <= 10_000
            if not result["truncated"]:
                break
            assert result["narrow"].startswith(f'list_runs(before="{page[-1]}")')
            assert len(page) > 20
            arguments["before"] = page[-1]
        assert listed == newest
        first = await call_tool_ok(client, "list_runs")
        assert [run["run_id"] for run in first["runs"]] == newest[:20]
        assert first["narrow"].startswith(f'list_runs(before="{newest[19]}")')
        assert "no run 'nobody'" in await call_tool_error(client, "list_runs", before="nobody")
