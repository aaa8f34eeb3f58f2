r"""Edits of JSON files that leave the rest of the file as it is, comments included.

Clients read JSON with comments (VS Code, Gemini CLI), and some also with a comma after the last
member (VS Code). A file is parsed by tree-sitter, which tells where each member begins and ends,
and then only the bytes of one member are changed. All offsets are in bytes.

    >>> text = b'{\n  // mine\n  "a": 1\n}\n'
    >>> print(set_member(text, ("b", "c"), [2]).decode(), end="")
    {
      // mine
      "a": 1,
      "b": {
        "c": [
          2
        ]
      }
    }
    >>> remove_member(set_member(text, ("b", "c"), [2]), ("b",)) == text
    True
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import tree_sitter
import tree_sitter_json

_BOM = b"\xef\xbb\xbf"
_DEFAULT_UNIT = "  "


class MalformedTextError(ValueError):
    """A text that is not in its format.

    Args:
        line: the number of the line, from 1.
        reason: what is wrong, as a clause.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


def read_values(data: bytes) -> Any:
    """Return the value of a JSON text. An empty text stands for {}.

    Raises:
        MalformedTextError: if the text is not JSON, comments and last commas apart.
    """
    value = _parse(data).value
    return {} if value is None else _to_python(value)


def set_member(data: bytes, path: Sequence[str], value: object) -> bytes:
    """Return the text with the member at a path set to a value. Missing objects are added.

    Raises:
        MalformedTextError: if the text is not JSON, or something on the path is not an object.
    """
    text = _parse(data)
    if text.value is None:
        written = _dump(_nest(path, value), text.unit, text.newline, "")
        before = data.rstrip() + text.newline.encode() if data.removeprefix(_BOM).strip() else data
        return before + written + text.newline.encode()
    node = text.value
    for depth, key in enumerate(path):
        pair = _find_pair(node, key)
        if pair is None:
            return _insert(text, node, key, _nest(path[depth + 1 :], value))
        node = _value_of(pair)
    if _to_python(node) == value:
        return data
    indent = _line_indent(data, node.start_byte)
    written = _dump(value, text.unit, text.newline, indent)
    return data[: node.start_byte] + written + data[node.end_byte :]


def remove_member(data: bytes, path: Sequence[str]) -> bytes:
    """Return the text without the member at a path; the same text if there is none.

    Raises:
        MalformedTextError: if the text is not JSON, or something on the path is not an object.
    """
    text = _parse(data)
    node = text.value
    parent = node
    pair = None
    for key in path:
        if node is None:
            return data
        parent = node
        pair = _find_pair(node, key)
        node = None if pair is None else _value_of(pair)
    if parent is None or pair is None:
        return data
    return _cut(text, parent, pair)


@dataclass(frozen=True)
class _JsonText:
    """A parsed text.

    Attributes:
        data: the text itself.
        value: the node of its one value, or None if it has only comments.
        last_commas: the offsets of commas that stand before a closing bracket.
    """

    data: bytes
    value: tree_sitter.Node | None
    last_commas: frozenset[int]

    @property
    def newline(self) -> str:
        return "\r\n" if b"\r\n" in self.data else "\n"

    @property
    def unit(self) -> str:
        """The indentation of one level: that of the first member that begins a line."""
        for pair in () if self.value is None else _pairs(self.value):
            if _begins_line(self.data, pair.start_byte):
                return _line_indent(self.data, pair.start_byte) or _DEFAULT_UNIT
        return _DEFAULT_UNIT


@cache
def _parser() -> tree_sitter.Parser:
    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_json.language()))


def _parse(data: bytes) -> _JsonText:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        raise MalformedTextError(line, "there are bytes that are not UTF-8") from None
    root = _parser().parse(data).root_node
    last_commas: frozenset[int] = frozenset()
    if root.has_error:
        last_commas = frozenset(_find_last_commas(data, root))
        blanked = bytearray(data)
        for offset in last_commas:
            blanked[offset] = ord(" ")
        root = _parser().parse(bytes(blanked)).root_node
    fault_line = _find_fault(root)
    values = [node for node in root.named_children if node.type != "comment"]
    if fault_line is None and len(values) > 1:
        fault_line = values[1].start_point.row
    if fault_line is not None:
        raise MalformedTextError(fault_line + 1, "this is not JSON")
    return _JsonText(data, values[0] if values else None, last_commas)


def _find_last_commas(data: bytes, root: tree_sitter.Node) -> Iterator[int]:
    """Yield the offsets of commas after which only comments come before a closing bracket."""
    comma = None
    for leaf in _leaves(root):
        token = data[leaf.start_byte : leaf.end_byte]
        if comma is not None and token in (b"}", b"]"):
            yield comma
        comma = leaf.start_byte if token == b"," else None


def _leaves(node: tree_sitter.Node) -> Iterator[tree_sitter.Node]:
    """Yield the tokens below a node in their order, comments left out."""
    if node.type == "comment" or node.start_byte == node.end_byte:
        return
    if not node.children:
        yield node
    for child in node.children:
        yield from _leaves(child)


def _find_fault(node: tree_sitter.Node) -> int | None:
    """Return the row of the first error below a node, or None."""
    if not node.has_error:
        return None
    if node.is_error or node.is_missing:
        return node.start_point.row
    rows = (_find_fault(child) for child in node.children)
    return next((row for row in rows if row is not None), node.start_point.row)


def _to_python(node: tree_sitter.Node) -> Any:
    if node.type == "object":
        members: dict[str, Any] = {}
        for pair in _pairs(node):
            key = _key_of(pair)
            if key in members:
                raise MalformedTextError(pair.start_point.row + 1, f"{key!r} is there twice")
            members[key] = _to_python(_value_of(pair))
        return members
    if node.type == "array":
        return [_to_python(item) for item in node.named_children if item.type != "comment"]
    assert node.text is not None  # the parser keeps the text that it was given
    try:
        return json.loads(node.text)
    except ValueError:
        raise MalformedTextError(node.start_point.row + 1, "this is not JSON") from None


def _pairs(node: tree_sitter.Node) -> list[tree_sitter.Node]:
    return [child for child in node.children if child.type == "pair"]


def _key_of(pair: tree_sitter.Node) -> str:
    key = pair.child_by_field_name("key")
    assert key is not None  # the grammar gives every pair a key
    return str(_to_python(key))


def _value_of(pair: tree_sitter.Node) -> tree_sitter.Node:
    value = pair.child_by_field_name("value")
    assert value is not None  # the grammar gives every pair a value
    return value


def _find_pair(node: tree_sitter.Node, key: str) -> tree_sitter.Node | None:
    if node.type != "object":
        line = node.start_point.row + 1
        raise MalformedTextError(line, f"an object with {key!r} was expected")
    found = [pair for pair in _pairs(node) if _key_of(pair) == key]
    if len(found) > 1:
        raise MalformedTextError(found[1].start_point.row + 1, f"{key!r} is there twice")
    return found[0] if found else None


def _insert(text: _JsonText, parent: tree_sitter.Node, key: str, value: object) -> bytes:
    """Return the text with a new last member in an object."""
    data, pairs = text.data, _pairs(parent)
    name = json.dumps(key, ensure_ascii=False).encode() + b": "
    newline = text.newline.encode()
    if pairs and newline not in data[parent.start_byte : parent.end_byte]:
        end = pairs[-1].end_byte
        member = name + json.dumps(value, ensure_ascii=False).encode()
        return data[:end] + b", " + member + data[end:]
    outer = _line_indent(data, parent.start_byte)
    indent = outer + text.unit
    if pairs and _begins_line(data, pairs[0].start_byte):
        indent = _line_indent(data, pairs[0].start_byte)
    member = newline + indent.encode() + name + _dump(value, text.unit, text.newline, indent)
    if not pairs:
        comments = [child.end_byte for child in parent.children if child.type == "comment"]
        anchor = max(comments, default=parent.start_byte + 1)
        rest = data[anchor:]
        if not re.match(rb"\s*\n", rest):
            rest = newline + outer.encode() + rest.lstrip()
        return data[:anchor] + member + rest
    end = pairs[-1].end_byte
    commas = [offset for offset in text.last_commas if end <= offset < parent.end_byte]
    later = [child.end_byte for child in parent.children if child.type == "comment"]
    anchor = max([end, *(offset for offset in later if offset > end), *(c + 1 for c in commas)])
    if commas:
        return data[:anchor] + member + b"," + data[anchor:]
    return data[:end] + b"," + data[end:anchor] + member + data[anchor:]


def _cut(text: _JsonText, parent: tree_sitter.Node, pair: tree_sitter.Node) -> bytes:
    """Return the text without a member and its comma."""
    data = text.data
    commas = [child.start_byte for child in parent.children if child.type == ","]
    commas += [c for c in text.last_commas if parent.start_byte < c < parent.end_byte]
    pairs = _pairs(parent)
    number = next(n for n, other in enumerate(pairs) if other.start_byte == pair.start_byte)
    limit = pairs[number + 1].start_byte if number + 1 < len(pairs) else parent.end_byte
    after = [comma for comma in commas if pair.end_byte <= comma < limit]
    before = [comma for comma in commas if comma < pair.start_byte]
    if after:
        head, end = data[: pair.start_byte], after[0] + 1
        # Between a member and its comma there can only be space and comments.
        kept = data[pair.end_byte : after[0]]
        kept = kept if kept.strip() else b""
    else:
        comma = max(before, default=None) if number > 0 else None
        head, end, kept = data[: pair.start_byte], pair.end_byte, b""
        if comma is not None:
            head = data[:comma] + data[comma + 1 : pair.start_byte]
    rest = data[end:]
    if len(pairs) == 1 and not any(child.type == "comment" for child in parent.children):
        return head.rstrip() + rest.lstrip()
    if re.match(rb"[ \t]*(?:\r?\n|\Z)", rest):
        head = re.sub(rb"(?:\r?\n)?[ \t]*\Z", b"", head)
    elif b"\n" not in data[parent.start_byte : parent.end_byte]:
        head, rest = head.rstrip(b" \t"), rest if after else rest.lstrip(b" \t")
    else:
        rest = rest.lstrip(b" \t")
    return head + kept + rest


def _nest(path: Sequence[str], value: object) -> object:
    for key in reversed(path):
        value = {key: value}
    return value


def _dump(value: object, unit: str, newline: str, indent: str) -> bytes:
    lines = json.dumps(value, indent=unit, ensure_ascii=False).split("\n")
    return (newline + indent).join(lines).encode()


def _line_indent(data: bytes, offset: int) -> str:
    """Return the white space at the beginning of the line in which an offset is."""
    line = data[data.rfind(b"\n", 0, offset) + 1 : offset].removeprefix(_BOM)
    return line[: len(line) - len(line.lstrip(b" \t"))].decode()


def _begins_line(data: bytes, offset: int) -> bool:
    start = data.rfind(b"\n", 0, offset) + 1
    return start > 0 and not data[start:offset].strip()
