"""What a client shows the model: the schema of each tool stays as it is, and small.

There is a snapshot for each tool; `UPDATE_SNAPSHOTS=1 pytest` on this file writes them again.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.types import Tool

from mcp_server.server.server import CircuitScoutServer
from mcp_server.session import ServerSettings
from mcp_server.tools.registry import TOOL_SPECS, build_tools

SNAPSHOTS = Path(__file__).parent / "schemas"
MAX_ALL_CHARACTERS = 48_000
MAX_TOOL_CHARACTERS = 4_000
MAX_OUTPUT_CHARACTERS = 4_000
NAMES = [tool.name for tool in build_tools(ServerSettings())]

pytestmark = pytest.mark.anyio


@pytest.fixture
async def tools(server: CircuitScoutServer) -> dict[str, Tool]:
    async with Client(server) as client:
        return {tool.name: tool for tool in (await client.list_tools()).tools}


def count_characters(tool: Tool) -> int:
    """Count the characters that a client shows the model."""
    return len(
        json.dumps(
            {"name": tool.name, "description": tool.description, "input_schema": tool.input_schema},
            ensure_ascii=False,
        )
    )


def every_property(schema: Any) -> list[tuple[str, dict[str, Any]]]:
    return list(schema.get("properties", {}).items())


async def test_the_tools_of_the_interface(tools: dict[str, Tool]) -> None:
    assert list(tools) == NAMES
    required = {name: set(tool.input_schema.get("required", [])) for name, tool in tools.items()}
    for name in ("check_task", "patch_sweep"):
        assert required[name] == {"model_id", "task"}
    for name in ("ablate_heads", "evaluate_circuit"):
        assert required[name] == {"model_id", "task", "nodes"}
    assert required["load_model"] == {"model"}
    assert required["unload_model"] == {"model_id"}
    assert required["run_with_cache"] == {"model_id", "prompt"}
    assert all(required[name] == {"run_id"} for name in ("run_status", "cancel_run", "get_circuit"))
    assert required["list_models"] == required["list_runs"] == set()
    sweep = tools["patch_sweep"].input_schema["properties"]
    assert {name: sweep[name]["default"] for name in ("site", "direction", "pairs", "seed")} == {
        "site": "resid_pre",
        "direction": "denoising",
        "pairs": 32,
        "seed": 0,
    }
    for name in (
        "check_task",
        "patch_sweep",
        "ablate_heads",
        "evaluate_circuit",
        "sae_top_features",
    ):
        pairs = tools[name].input_schema["properties"]["pairs"]
        assert pairs["default"] == 32


async def test_together_they_are_small(tools: dict[str, Tool]) -> None:
    assert sum(map(count_characters, tools.values())) <= MAX_ALL_CHARACTERS


@pytest.mark.parametrize("name", NAMES)
async def test_a_schema(name: str, tools: dict[str, Tool]) -> None:
    tool = tools[name]
    assert count_characters(tool) <= MAX_TOOL_CHARACTERS
    assert tool.output_schema is not None
    assert len(json.dumps(tool.output_schema)) <= MAX_OUTPUT_CHARACTERS
    assert tool.output_schema["type"] == "object"
    assert tool.input_schema["additionalProperties"] is False
    assert "$defs" not in tool.input_schema, "objects are told by their argument's description"
    undescribed = [
        field for field, facts in every_property(tool.input_schema) if not described(facts)
    ]
    assert undescribed == []
    hints = tool.annotations
    assert hints is not None
    assert None not in (
        hints.read_only_hint,
        hints.destructive_hint,
        hints.idempotent_hint,
        hints.open_world_hint,
    )
    assert tool.title
    text = tool.description or ""
    assert len(text) < 2000
    assert "Use it" in text
    assert "Cost:" in text
    assert re.search(rf"Example: {name}\(", text)


def described(facts: dict[str, Any]) -> bool:
    """Return whether a field has a description; if null is allowed, its other part may have it."""
    return bool(facts.get("description")) or any(
        part.get("description") for part in facts.get("anyOf", [])
    )


@pytest.mark.parametrize("name", NAMES)
async def test_a_schema_is_as_it_was(name: str, tools: dict[str, Tool]) -> None:
    schema = (
        json.dumps(
            tools[name].model_dump(mode="json", by_alias=True, exclude_none=True),
            indent=1,
            sort_keys=True,
        )
        + "\n"
    )
    path = SNAPSHOTS / f"{name}.json"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(schema, encoding="utf-8")
    assert path.is_file(), "no snapshot yet: UPDATE_SNAPSHOTS=1"
    assert path.read_text(encoding="utf-8") == schema, (
        "the schema changed: if that is meant, UPDATE_SNAPSHOTS=1"
    )


def test_no_snapshot_is_left_over() -> None:
    assert sorted(path.stem for path in SNAPSHOTS.glob("*.json")) == sorted(NAMES)


def test_read_only_and_toolsets() -> None:
    offered = {tool.name for tool in build_tools(ServerSettings(read_only=True))}
    writing = {"discover_circuit", "train_sae", "cancel_run", "circuit_features"}
    assert offered == {spec.name for spec in TOOL_SPECS} - writing
    assert {tool.name for tool in build_tools(ServerSettings(toolsets=("runs",)))} == {
        *("load_model", "list_models", "unload_model"),
        *("run_status", "cancel_run", "get_circuit", "list_runs"),
    }
    circuits = {tool.name for tool in build_tools(ServerSettings(toolsets=("circuits",)))}
    assert {"discover_circuit", "run_status", "get_circuit"} <= circuits, (
        "a run that is started can be followed"
    )
    assert {"train_sae", "run_status", "cancel_run"} <= {
        tool.name for tool in build_tools(ServerSettings(toolsets=("features",)))
    }
