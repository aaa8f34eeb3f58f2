"""Schemas that refuse what they do not know, and faults of arguments told briefly.

The SDK drops unknown arguments silently, so that ``{"haed": 5}`` would measure head 0. Here they are an error that names what is allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from mcp.server.mcpserver.tools import Tool
from pydantic import BeforeValidator, ValidationError
from pydantic_core import PydanticCustomError

_MAX_ERRORS = 5  # faults told
_MESSAGE_PREFIX = "Input should be "


def close_schema(tool: Tool) -> Tool:
    """The tool with a closed input schema, and without the titles and nulls that pydantic adds to its fields."""
    model = tool.fn_metadata.arg_model
    model.model_config["extra"] = "forbid"
    for field in model.model_fields.values():
        field.metadata.append(
            BeforeValidator(_require_bool if field.annotation is bool else refuse_bool)
        )
    model.model_rebuild(force=True)
    schema = _strip_schema(model.model_json_schema(by_alias=True))
    schema["properties"] = {
        name: _drop_null_option(facts) for name, facts in schema.get("properties", {}).items()
    }
    tool.parameters = schema
    if tool.fn_metadata.output_schema is not None:
        tool.fn_metadata.output_schema = _strip_schema(tool.fn_metadata.output_schema)
    return tool


def _drop_null_option(facts: dict[str, Any]) -> dict[str, Any]:
    """An argument as it is given; one that may be left out need not say that null, which it then is, is allowed too."""
    kinds = [kind for kind in facts.get("anyOf", []) if kind != {"type": "null"}]
    if not kinds or len(kinds) == len(facts["anyOf"]):
        return facts
    rest = {key: value for key, value in facts.items() if key != "anyOf"}
    return {**kinds[0], **rest} if len(kinds) == 1 else {"anyOf": kinds, **rest}


def explain_argument_errors(tool: Tool, fault: ValidationError) -> str:
    """What is wrong with a call's arguments, what is allowed, and what to do."""
    known = list(tool.parameters.get("properties", {}))
    faults = fault.errors(include_url=False, include_context=False, include_input=False)
    fields = _collect_descriptions(tool.parameters)
    by_place: dict[str, list[Mapping[str, Any]]] = {}
    for found in faults:
        by_place.setdefault(_error_path(found, fields), []).append(found)
    deepest = [
        place for place in by_place if not any(other.startswith(f"{place}.") for other in by_place)
    ]
    lines = [_format_error(place, by_place[place], fields, known) for place in deepest]
    more = [f"… and {len(lines) - _MAX_ERRORS} more."] if len(lines) > _MAX_ERRORS else []
    required = ", ".join(tool.parameters.get("required", [])) or "none"
    return "\n".join(
        [
            *lines[:_MAX_ERRORS],
            *more,
            f"{tool.name} takes: {', '.join(known)}; required: {required}.",
        ]
    )


def _error_path(found: Mapping[str, Any], fields: Mapping[str, str]) -> str:
    """Where a fault is: names of fields and numbers of items, without pydantic's names for the branches of a union."""
    last = len(found["loc"]) - 1 if found["type"] == "extra_forbidden" else -1
    named = [
        part
        for n, part in enumerate(found["loc"])
        if n == last or isinstance(part, int) or part in fields
    ]
    return ".".join(str(part)[:40] for part in named[:6])


def _format_error(
    place: str, faults: list[Mapping[str, Any]], fields: Mapping[str, str], known: list[str]
) -> str:
    if faults[0]["type"] == "extra_forbidden" and len(faults[0]["loc"]) == 1:
        near = difflib.get_close_matches(place, known, n=1)
        return f"There is no argument {place!r}.{f' Did you mean {near[0]!r}?' if near else ''}"
    said = list(dict.fromkeys(fault["msg"][:300] for fault in faults))
    meant = next((fields[part] for part in reversed(place.split(".")) if fields.get(part)), "")
    return f"{place}: {' / '.join([said[0], *(more.removeprefix(_MESSAGE_PREFIX) for more in said[1:])])}.{f' ({meant})' if meant else ''}"


def _collect_descriptions(schema: Mapping[str, Any]) -> dict[str, str]:
    """Each field of a tool, and of what it takes, with its description; the tool's own win."""
    holders = [*schema.get("$defs", {}).values(), schema]
    return {
        name: _find_description(facts)
        for holder in holders
        for name, facts in holder.get("properties", {}).items()
    }


def _find_description(facts: Mapping[str, Any]) -> str:
    parts = [facts, *facts.get("anyOf", [])]
    return next((str(part["description"]) for part in parts if part.get("description")), "")


def _require_bool(value: Any) -> Any:
    """True or false, and no number that stands for it."""
    if not isinstance(value, bool):
        raise PydanticCustomError("bool_type", "Input should be true or false")
    return value


def refuse_bool(value: Any) -> Any:
    """No true that would count as 1."""
    if isinstance(value, bool):
        raise PydanticCustomError("not_bool", "Input should not be true or false")
    return value


def _strip_schema(schema: Any) -> Any:
    """A schema without generated titles, and without defaults of null: what is left out is null; a property that is called title stays."""
    if isinstance(schema, list):
        return [_strip_schema(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        key: value for key, value in schema.items() if key != "title" or not isinstance(value, str)
    }
    if "default" in kept and kept["default"] is None:
        del kept["default"]
    named = ("properties", "$defs")
    return {
        key: {name: _strip_schema(inner) for name, inner in value.items()}
        if key in named
        else _strip_schema(value)
        for key, value in kept.items()
    }
