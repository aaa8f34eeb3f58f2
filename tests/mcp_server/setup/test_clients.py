"""Each client: an example file of its own gets our server, and otherwise stays as it is.

The files in `examples` are of the form that each client's documentation shows. Those of Claude
Code, Codex and Gemini CLI were begun with the client's own command (`mcp add`).
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mcp_server.setup.clients import CLIENT_NAMES, CLIENTS, Client, find_clients
from mcp_server.setup.configuration import plan_addition, plan_removal, write_change
from mcp_server.setup.machine import Machine
from tests.oracles.jsonc import comments_of, read_jsonc

EXAMPLES = Path(__file__).parent / "examples"
SCRIPT = Path("/tools/bin/circuit-scout")
ENTRIES: dict[str, dict[str, Any]] = {
    "claude-code": {"type": "stdio"},
    "cursor": {"type": "stdio"},
    "vscode": {"type": "stdio"},
    "claude-desktop": {},
    "codex": {"startup_timeout_sec": 30, "tool_timeout_sec": 600},
    "gemini": {},
    "windsurf": {},
}
KEYS = {"vscode": "servers", "codex": "mcp_servers"}


def find_client(name: str) -> Client:
    return next(client for client in CLIENTS if client.name == name)


def read(client: Client, data: bytes) -> dict[str, Any]:
    """Read a configuration with another reader than setup's."""
    text = data.decode()
    values = tomllib.loads(text) if client.format == "toml" else read_jsonc(text)
    assert isinstance(values, dict)
    return values


@pytest.mark.parametrize("client", CLIENTS, ids=CLIENT_NAMES)
def test_an_example_file_gets_our_server_and_keeps_everything(
    client: Client, machine: Machine
) -> None:
    path = client.user_config(machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    original = (EXAMPLES / f"{client.name}.{client.format}").read_bytes()
    path.write_bytes(original)
    assert write_change(plan_addition(client, path, SCRIPT, None), machine) is not None

    written = path.read_bytes()
    expected = read(client, original)
    entry: dict[str, Any] = {"command": str(SCRIPT), "args": ["serve"], **ENTRIES[client.name]}
    expected[KEYS.get(client.name, "mcpServers")]["circuit-scout"] = entry
    assert read(client, written) == expected
    if client.format == "json":
        assert comments_of(written.decode()) == comments_of(original.decode())
    if not comments_of(original.decode()) and client.format == "json":
        json.loads(written)  # a client that reads strict JSON can still read it
    assert set(original.splitlines()) - set(written.splitlines()) <= LINES_THAT_GET_A_COMMA

    again = plan_addition(client, path, SCRIPT, None)
    assert (again.outcome, again.after) == ("unchanged", written)
    removal = plan_removal(client, path)
    assert (removal.outcome, removal.after) == ("removed", original)


# The line of the last server before ours, in the examples.
LINES_THAT_GET_A_COMMA = {
    b"    }",
    b"        }",
    b'    "remote": { "url": "http://localhost:3000/mcp", "headers": { "API_KEY": "value" } }',
}


@pytest.mark.parametrize("client", CLIENTS, ids=CLIENT_NAMES)
@pytest.mark.parametrize("scope", ["user", "project"])
def test_a_file_that_is_not_there_is_made(client: Client, scope: Any, machine: Machine) -> None:
    path = client.config_path(machine, scope)
    if path is None:
        assert client.name in ("claude-desktop", "windsurf")
        return
    assert path.is_relative_to(machine.home if scope == "user" else machine.project)
    assert write_change(plan_addition(client, path, SCRIPT, ["--read-only"]), machine) is None
    servers = read(client, path.read_bytes())[KEYS.get(client.name, "mcpServers")]
    assert servers["circuit-scout"]["args"] == ["serve", "--read-only"]
    assert plan_removal(client, path).outcome == "removed"


def test_the_places_of_the_three_systems(machine: Machine) -> None:
    places = {}
    for platform in ("linux", "darwin", "win32"):
        there = dataclasses.replace(machine, platform=platform)
        places[platform] = {
            name: find_client(name).user_config(there).relative_to(machine.home).as_posix()
            for name in ("vscode", "claude-desktop", "claude-code")
        }
    assert places["linux"] == {
        "vscode": ".config/Code/User/mcp.json",
        "claude-desktop": ".config/Claude/claude_desktop_config.json",
        "claude-code": ".claude.json",
    }
    support = "Library/Application Support"
    assert places["darwin"] == {
        "vscode": f"{support}/Code/User/mcp.json",
        "claude-desktop": f"{support}/Claude/claude_desktop_config.json",
        "claude-code": ".claude.json",
    }
    assert places["win32"]["vscode"] == "AppData/Roaming/Code/User/mcp.json"


def test_variables_move_a_client(machine: Machine) -> None:
    moved = dataclasses.replace(
        machine,
        environment={
            "CLAUDE_CONFIG_DIR": "/x/claude",
            "CODEX_HOME": "/x/codex",
            "GEMINI_CLI_HOME": "/x/gemini",
            "XDG_CONFIG_HOME": "/x/config",
        },
    )
    paths = {client.name: str(client.user_config(moved)) for client in CLIENTS}
    assert paths["claude-code"] == "/x/claude/.claude.json"
    assert paths["codex"] == "/x/codex/config.toml"
    assert paths["gemini"] == "/x/gemini/.gemini/settings.json"
    assert paths["vscode"] == "/x/config/Code/User/mcp.json"
    skills = {client.name: client.skills_path(moved, "user") for client in CLIENTS}
    assert skills["claude-code"] == Path("/x/claude/skills")
    assert skills["claude-desktop"] is None


def test_a_client_is_found_by_its_files_or_its_command(machine: Machine, tmp_path: Path) -> None:
    assert find_clients(machine) == []
    (machine.home / ".cursor").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "codex").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "codex").chmod(0o755)
    assert [client.name for client in find_clients(machine)] == ["cursor", "codex"]
