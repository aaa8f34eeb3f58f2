"""Schemas that refuse what they do not know, and faults of arguments told briefly.

The SDK drops unknown arguments silently, so that ``{"haed": 5}`` would measure head 0. Here they are an error that names what is allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from mcp.server.mcpserver.tools import Tool
from pydantic import ValidationError

_MOST = 5  # faults told


def strict(tool: Tool) -> Tool:
    """The tool with a closed input schema, and without the titles that pydantic adds to each field."""
    model = tool.fn_metadata.arg_model
    model.model_config["extra"] = "forbid"
    model.model_rebuild(force=True)
    tool.parameters = _plain(model.model_json_schema(by_alias=True))
    if tool.fn_metadata.output_schema is not None:
        tool.fn_metadata.output_schema = _plain(tool.fn_metadata.output_schema)
    return tool


def told(tool: Tool, fault: ValidationError) -> str:
    """What is wrong with a call's arguments, what is allowed, and what to do."""
    known = list(tool.parameters.get("properties", {}))
    faults = fault.errors(include_url=False, include_context=False, include_input=False)
    lines = list(dict.fromkeys(_line(found, known) for found in faults))
    more = [f"… and {len(lines) - _MOST} more."] if len(lines) > _MOST else []
    required = ", ".join(tool.parameters.get("required", [])) or "none"
    return "\n".join([*lines[:_MOST], *more, f"{tool.name} takes: {', '.join(known)}; required: {required}."])


def _line(found: Mapping[str, Any], known: list[str]) -> str:
    place = ".".join(str(part)[:40] for part in found["loc"][:6])
    if found["type"] == "extra_forbidden" and len(found["loc"]) == 1:
        near = difflib.get_close_matches(place, known, n=1)
        return f"There is no argument {place!r}.{f' Did you mean {near[0]!r}?' if near else ''}"
    return f"{place}: {found['msg'][:300]}."


def _plain(schema: Any) -> Any:
    """A schema without generated titles; a property that is called title stays."""
    if isinstance(schema, list):
        return [_plain(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if not (key == "title" and isinstance(value, str))}
    named = ("properties", "$defs")
    return {key: {name: _plain(inner) for name, inner in value.items()} if key in named else _plain(value) for key, value in kept.items()}
