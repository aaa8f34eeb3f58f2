"""Edits of TOML files that leave the rest of the file as it is, comments included (tomlkit)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import MutableMapping, Sequence
from typing import Any

import tomlkit
from tomlkit.items import InlineTable

from mcp_server.setup.json_text import MalformedTextError


def read_values(data: bytes) -> dict[str, Any]:
    """Return the values of a TOML text.

    Raises:
        MalformedTextError: if the text is not TOML.
    """
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        raise MalformedTextError(line, "there are bytes that are not UTF-8") from None
    except tomllib.TOMLDecodeError as fault:
        match = re.search(r"^(.*) \(at line (\d+)", str(fault))
        reason = f"this is not TOML ({match[1] if match else fault})"
        last = data.count(b"\n") + 1
        raise MalformedTextError(int(match[2]) if match else last, reason) from None


def set_member(data: bytes, path: Sequence[str], value: object) -> bytes:
    """Return the text with the member at a path set to a value.

    A missing table is added at the end, as a person would write it.

    Raises:
        MalformedTextError: if the text is not TOML, or something on the path is not a table.
    """
    read_values(data)
    document = tomlkit.parse(data.decode("utf-8"))
    table: Any = document
    is_there = True
    for depth, key in enumerate(path[:-1]):
        is_there = key in table
        if not is_there:
            break
        table = table[key]
        if not isinstance(table, MutableMapping):
            raise MalformedTextError(1, f"{'.'.join(path[: depth + 1])} is not a table")
    is_inline = isinstance(table, InlineTable)
    if is_there and (path[-1] in table or not isinstance(value, dict) or is_inline):
        table[path[-1]] = value
        return _encode(tomlkit.dumps(document), data)
    if is_inline:
        raise MalformedTextError(1, f"{path[0]} is written in one line, and has no {path[1]!r}")
    addition = {path[-1]: value}
    for key in reversed(path[:-1]):
        addition = {key: addition}
    before = data.decode("utf-8").rstrip()
    gap = "\n\n" if before else ""
    return _encode(f"{before}{gap}{tomlkit.dumps(addition)}", data)


def remove_member(data: bytes, path: Sequence[str]) -> bytes:
    """Return the text without the member at a path; the same text if there is none.

    Raises:
        MalformedTextError: if the text is not TOML.
    """
    read_values(data)
    document = tomlkit.parse(data.decode("utf-8"))
    table: Any = document
    for key in path[:-1]:
        if not isinstance(table, MutableMapping) or key not in table:
            return data
        table = table[key]
    if not isinstance(table, MutableMapping) or path[-1] not in table:
        return data
    del table[path[-1]]
    text = tomlkit.dumps(document)
    return _encode(f"{text.rstrip()}\n" if text.strip() else "", data)


def _encode(text: str, before: bytes) -> bytes:
    """Return the text in UTF-8, with the line ends of the text before."""
    if b"\r\n" in before:
        text = re.sub(r"(?<!\r)\n", "\r\n", text)
    return text.encode("utf-8")
