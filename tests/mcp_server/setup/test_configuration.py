"""A configuration is never damaged: what others wrote stays, and the old file is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mcp_server.errors import SetupError
from mcp_server.setup import configuration, json_text
from mcp_server.setup.clients import CLIENTS
from mcp_server.setup.configuration import plan_addition, plan_removal, write_change
from mcp_server.setup.machine import Machine

SCRIPT = Path("/tools/bin/circuit-scout")
CURSOR = next(client for client in CLIENTS if client.name == "cursor")


def config(machine: Machine, text: str) -> Path:
    path = machine.home / "mcp.json"
    path.write_text(text)
    return path


def test_an_entry_keeps_what_somebody_added_to_it(machine: Machine) -> None:
    entry = {"command": "/old", "args": ["serve", "--read-only"], "env": {"HF_HOME": "/m"}}
    path = config(machine, json.dumps({"mcpServers": {"circuit-scout": entry}}, indent=2))
    change = plan_addition(CURSOR, path, SCRIPT, None)
    assert change.outcome == "updated"
    servers = json.loads(change.after)["mcpServers"]
    assert servers["circuit-scout"] == {**entry, "command": str(SCRIPT), "type": "stdio"}
    change = plan_addition(CURSOR, path, SCRIPT, ["--models-dir", "/models"])
    entry = json.loads(change.after)["mcpServers"]["circuit-scout"]
    assert entry["args"] == ["serve", "--models-dir", "/models"]
    assert entry["env"] == {"HF_HOME": "/m"}


def test_arguments_that_do_not_serve_are_mended(machine: Machine) -> None:
    path = config(machine, '{"mcpServers": {"circuit-scout": {"command": "x", "args": ["run"]}}}')
    change = plan_addition(CURSOR, path, SCRIPT, None)
    assert json.loads(change.after)["mcpServers"]["circuit-scout"]["args"] == ["serve"]


def test_the_old_file_is_kept_with_its_permissions(machine: Machine) -> None:
    path = config(machine, "{}")
    path.chmod(0o600)
    backup = write_change(plan_addition(CURSOR, path, SCRIPT, None), machine)
    assert backup is not None
    assert backup.read_text() == "{}"
    assert [file.stat().st_mode & 0o777 for file in (path, backup)] == [0o600, 0o600]
    assert backup.is_relative_to(machine.data / "backups")
    assert [file.name for file in machine.home.iterdir()] == ["mcp.json"], "nothing is left behind"
    assert write_change(plan_addition(CURSOR, path, SCRIPT, None), machine) is None


def test_a_link_stays_a_link(machine: Machine) -> None:
    target = machine.project / "dotfiles.json"
    target.write_text("{}")
    link = machine.home / "mcp.json"
    link.symlink_to(target)
    write_change(plan_addition(CURSOR, link, SCRIPT, None), machine)
    assert link.is_symlink()
    assert "circuit-scout" in target.read_text()


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ('{"mcpServers": {', "line 1: this is not JSON"),
        ("[]", "holds no object"),
        ('{"mcpServers": []}', "is not made of named entries"),
        ('{"mcpServers": {"circuit-scout": "x"}}', "is not made of named entries"),
        ('{"mcpServers": {"circuit-scout": {"url": "http://x"}}}', "at an address"),
        ('{"mcpServers": {}, "mcpServers": {}}', "'mcpServers' is there twice"),
    ],
)
def test_a_file_that_cannot_be_understood_is_left_alone(
    text: str, cause: str, machine: Machine
) -> None:
    path = config(machine, text)
    with pytest.raises(SetupError) as fault:
        plan_addition(CURSOR, path, SCRIPT, None)
    assert cause in fault.value.cause
    assert str(path) in fault.value.cause
    assert path.read_text() == text


def test_removal_leaves_other_servers(machine: Machine) -> None:
    path = config(machine, '{"mcpServers": {"circuit-scout": {"url": "u"}, "a": {}}}')
    assert json.loads(plan_removal(CURSOR, path).after) == {"mcpServers": {"a": {}}}
    assert plan_removal(CURSOR, machine.home / "none.json").outcome == "absent"
    assert write_change(plan_removal(CURSOR, machine.home / "none.json"), machine) is None
    assert not (machine.home / "none.json").exists()


def test_a_file_that_was_changed_meanwhile_is_not_overwritten(machine: Machine) -> None:
    path = config(machine, "{}")
    change = plan_addition(CURSOR, path, SCRIPT, None)
    path.write_text('{"new": 1}')
    with pytest.raises(SetupError, match="changed meanwhile"):
        write_change(change, machine)
    assert path.read_text() == '{"new": 1}'


def test_a_folder_that_cannot_be_written_is_named(machine: Machine) -> None:
    (machine.home / "file").write_text("")
    with pytest.raises(SetupError, match="cannot be read: Not a directory"):
        plan_addition(CURSOR, machine.home / "file" / "mcp.json", SCRIPT, None)


def test_an_edit_that_would_do_more_is_a_bug_and_writes_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config(machine, '{"a": 1}')
    set_member = json_text.set_member
    monkeypatch.setattr(
        configuration.json_text,
        "set_member",
        lambda data, member, value: set_member(b"{}", member, value),
    )
    with pytest.raises(RuntimeError, match="more than our entry"):
        plan_addition(CURSOR, path, SCRIPT, None)
