"""Edits of JSON with comments: right by an independent reader, and nothing else changes."""

from __future__ import annotations

import doctest
import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_server.setup import json_text
from mcp_server.setup.json_text import (
    MalformedTextError,
    read_values,
    remove_member,
    set_member,
)
from tests.oracles.jsonc import comments_of, read_jsonc

PATH = ("mcpServers", "circuit-scout")
ENTRY = {"command": "/my tools/circuit-scout", "args": ["serve"]}
KEYS = st.text(string.ascii_letters + ' /*",{}é🧪', min_size=1, max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab/*",{}[]:\\\n\u2028', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
GAPS = st.sampled_from(["", " ", "\n", "\n\t", "\r\n  ", " // it's, {\n", "/* } */", " /**/\n"])


@st.composite
def commented_texts(draw: st.DrawFn) -> str:
    """Draw an object in JSON, with comments, white space and last commas anywhere."""

    def write(value: object) -> str:
        gap = [draw(GAPS) for _ in range(3)]
        if not isinstance(value, dict | list):
            return json.dumps(value, ensure_ascii=draw(st.booleans()))
        items = [
            f"{json.dumps(key)}{draw(GAPS)}:{draw(GAPS)}{write(item)}"
            for key, item in (value.items() if isinstance(value, dict) else ())
        ] or [write(item) for item in value]
        body = f"{gap[0]},{gap[1]}".join(items)
        last = "," if items and draw(st.booleans()) else ""
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        return f"{opening}{gap[2]}{body}{draw(GAPS)}{last}{draw(GAPS)}{closing}"

    values = draw(st.dictionaries(KEYS, VALUES, max_size=3))
    if draw(st.booleans()):
        values["mcpServers"] = draw(st.dictionaries(KEYS, VALUES, max_size=3))
    return f"{draw(GAPS)}{write(values)}{draw(GAPS)}"


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(json_text).failed == 0


@settings(max_examples=50, deadline=None)
@given(commented_texts())
def test_an_edit_changes_one_member_and_loses_no_comment(text: str) -> None:
    expected = read_jsonc(text)
    assert read_values(text.encode()) == expected
    expected.setdefault("mcpServers", {})["circuit-scout"] = ENTRY
    added = set_member(text.encode(), PATH, ENTRY)
    assert read_jsonc(added.decode()) == expected
    assert comments_of(added.decode()) == comments_of(text)
    assert set_member(added, PATH, ENTRY) == added
    replaced = set_member(added, (*PATH, "args"), [])
    expected["mcpServers"]["circuit-scout"] = {**ENTRY, "args": []}
    assert read_jsonc(replaced.decode()) == expected
    removed = remove_member(replaced, PATH)
    del expected["mcpServers"]["circuit-scout"]
    assert read_jsonc(removed.decode()) == expected
    assert comments_of(removed.decode()) == comments_of(text)


@settings(max_examples=40, deadline=None)
@given(commented_texts(), st.randoms())
def test_any_member_can_be_removed(text: str, random) -> None:
    values = read_jsonc(text)
    if not values:
        return
    key = random.choice(sorted(values))
    removed = remove_member(text.encode(), (key,)).decode()
    del values[key]
    assert read_jsonc(removed) == values


@pytest.mark.parametrize(
    "text",
    [
        '{"mcpServers": {"a": {"command": "x"}}}',
        '{"mcpServers": {}}\n',
        '{\n\t"mcpServers": {\n\t\t"a": {\n\t\t\t"command": "x"\n\t\t}\n\t}\n}',
        '{\n  "mcpServers": {\n    "a": {}, // one\n    // "b": {}\n  }, /* z */\n}\n',
        '{\r\n  "mcpServers": {\r\n    "a": {}\r\n  },\r\n  "z": 1\r\n}\r\n',
        '\ufeff{\n  "mcpServers": {\n    "a": {} // one\n  }\n}\n',
    ],
)
def test_adding_and_removing_gives_the_same_bytes(text: str) -> None:
    data = text.encode()
    added = set_member(data, PATH, ENTRY)
    assert added != data
    assert remove_member(added, PATH) == data
    if "\r" in text:
        assert b"\n" not in added.replace(b"\r\n", b"")


@pytest.mark.parametrize("text", ["", " \n", "{}", "// mine\n", "\ufeff"])
def test_an_empty_file_gets_an_object(text: str) -> None:
    added = set_member(text.encode(), PATH, ENTRY).decode()
    assert read_jsonc(added) == {"mcpServers": {"circuit-scout": ENTRY}}
    assert comments_of(added) == comments_of(text)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b'{"a": 1,, "b": 2}', 1),
        (b'{\n"a": 1', 2),
        (b'{\n\n"a": nan}', 3),
        (b'{"a": 01}', 1),
        (b'{"a": "x\ny"}', 2),
        (b"{}\n{}", 2),
        (b'{\n"a": "\xff"}', 2),
        (b"{'a': 1}", 1),
        (b'{"a": 1,\n "a": 2}', 2),
        (b'{"a" 1}', 1),
    ],
)
def test_what_is_not_json_is_told_with_its_line(data: bytes, line: int) -> None:
    with pytest.raises(MalformedTextError) as fault:
        read_values(data)
    assert fault.value.line == line


def test_a_member_in_no_object_is_refused() -> None:
    with pytest.raises(MalformedTextError, match="line 2: an object with 'circuit-scout'"):
        set_member(b'{\n"mcpServers": []}', PATH, ENTRY)
    assert remove_member(b'{"mcpServers": {}}', PATH) == b'{"mcpServers": {}}'
    assert remove_member(b"", PATH) == b""
