"""Edits of TOML files: everything else stays, comments included."""

from __future__ import annotations

import tomllib

import pytest

from mcp_server.setup.json_text import MalformedTextError
from mcp_server.setup.toml_text import read_values, remove_member, set_member

PATH = ("mcp_servers", "circuit-scout")
ENTRY = {"command": "tools\\circuit-scout.exe", "args": ["serve"]}


@pytest.mark.parametrize(
    "text",
    [
        'model = "x" # mine\n',
        '[mcp_servers.a]\ncommand = "a"\n\n[tui]\nb = 1\n\n[mcp_servers.c]\ncommand = "c"\n',
        '[mcp_servers]\n\n[mcp_servers.a]\ncommand = "a"\n[mcp_servers.a.env]\nK = "v"\n',
        "# only a comment\n",
        'mcp_servers.a.command = "a"\n',
        '[a]\r\nb = """\r\nlines\r\n"""\r\n',
    ],
)
def test_a_table_is_added_and_removed(text: str) -> None:
    data = text.encode()
    expected = tomllib.loads(text)
    added = set_member(data, PATH, ENTRY)
    assert added.startswith(data.rstrip())
    expected.setdefault("mcp_servers", {})["circuit-scout"] = ENTRY
    assert tomllib.loads(added.decode()) == expected
    assert remove_member(added, PATH) == data
    if "\r" in text:
        assert b"\n" not in added.replace(b"\r\n", b"")


def test_an_empty_file_gets_a_table() -> None:
    added = set_member(b"", PATH, ENTRY)
    assert added.startswith(b"[mcp_servers.circuit-scout]\n")
    assert remove_member(added, PATH) == b""
    assert remove_member(b"", PATH) == b""
    assert remove_member(b"a = 1\n", PATH) == b"a = 1\n"


def test_a_field_is_set_in_its_place() -> None:
    text = b"[mcp_servers.circuit-scout]\ncommand = 'old' # mine\ntool_timeout_sec = 5\n[b]\n"
    changed = set_member(text, (*PATH, "command"), "new")
    assert changed == text.replace(b"'old'", b'"new"')
    changed = set_member(text, (*PATH, "args"), ["serve"])
    assert tomllib.loads(changed.decode())["mcp_servers"]["circuit-scout"] == {
        "command": "old",
        "tool_timeout_sec": 5,
        "args": ["serve"],
    }
    assert b"# mine" in changed


def test_servers_in_one_line_get_one_more() -> None:
    added = set_member(b'mcp_servers = { a = { command = "a" } } # all\n', PATH, ENTRY)
    servers = tomllib.loads(added.decode())["mcp_servers"]
    assert servers == {"a": {"command": "a"}, "circuit-scout": ENTRY}
    assert b"# all" in added


@pytest.mark.parametrize(
    ("data", "line"),
    [(b"a = \nb = 1", 1), (b"[a]\nx = 1\nx = 2\n", 3), (b"a = 1\n\xff", 2), (b'a = "', 1)],
)
def test_what_is_not_toml_is_told_with_its_line(data: bytes, line: int) -> None:
    with pytest.raises(MalformedTextError) as fault:
        read_values(data)
    assert fault.value.line == line


def test_a_server_in_no_table_is_refused() -> None:
    with pytest.raises(MalformedTextError, match="mcp_servers is not a table"):
        set_member(b"mcp_servers = 3\n", PATH, ENTRY)
