"""Input schemas that refuse unknown arguments, and short explanations of faulty arguments.

The SDK drops unknown arguments silently, so that ``{"haed": 5}`` would measure head 0. Here an
unknown argument is an error that names what is allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from mcp.server.mcpserver.tools import Tool
from pydantic import BeforeValidator, ValidationError
from pydantic_core import PydanticCustomError

ErrorDetails = Mapping[str, Any]  # one error, as pydantic reports it

_MAX_ERRORS = 5  # that are explained
_MAX_MESSAGE = 300  # characters of one message of pydantic
_MAX_PATH_PARTS = 6
_MAX_PATH_PART = 40  # characters
_MESSAGE_PREFIX = "Input should be "


def close_schema(tool: Tool) -> Tool:
    """Return the tool with a closed input schema.

    A model has to read the schemas, so they lose the titles and nulls that pydantic adds to every
    field. An object inside an argument, such as a prompt pair, is shown as any object: what it
    holds is told, with an example, by the description of its argument, and a schema of it in each
    tool would be longer than everything else. It is validated all the same, and
    `explain_argument_errors` knows its fields.
    """
    model = tool.fn_metadata.arg_model
    model.model_config["extra"] = "forbid"
    for field in model.model_fields.values():
        check = _require_bool if field.annotation is bool else refuse_bool
        field.metadata.append(BeforeValidator(check))
    model.model_rebuild(force=True)
    schema = _strip_schema(_hide_objects(model.model_json_schema(by_alias=True)))
    properties = schema.get("properties", {})
    schema["properties"] = {
        name: _drop_null_option(field_schema) for name, field_schema in properties.items()
    }
    tool.parameters = schema
    if tool.fn_metadata.output_schema is not None:
        tool.fn_metadata.output_schema = _strip_schema(tool.fn_metadata.output_schema)
    return tool


def _hide_objects(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without definitions; a reference to one becomes an object of any fields."""

    def hide(part: Any) -> Any:
        if isinstance(part, list):
            return [hide(inner) for inner in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return {"type": "object"}
        return {key: hide(value) for key, value in part.items()}

    return {key: hide(value) for key, value in schema.items() if key != "$defs"}


def _drop_null_option(field_schema: dict[str, Any]) -> dict[str, Any]:
    """Return an argument's schema without null.

    An argument that may be left out is null then, which the schema need not say.
    """
    options = field_schema.get("anyOf", [])
    kinds = [kind for kind in options if kind != {"type": "null"}]
    if not kinds or len(kinds) == len(options):
        return field_schema
    rest = {key: value for key, value in field_schema.items() if key != "anyOf"}
    return {**kinds[0], **rest} if len(kinds) == 1 else {"anyOf": kinds, **rest}


def explain_argument_errors(tool: Tool, error: ValidationError) -> str:
    """Return what is wrong with a call's arguments, what is allowed, and what to do."""
    arguments = list(tool.parameters.get("properties", {}))
    whole_schema = tool.fn_metadata.arg_model.model_json_schema(by_alias=True)
    descriptions = _describe_properties(whole_schema)
    inner_descriptions = descriptions.copy()
    for definition in whole_schema.get("$defs", {}).values():
        inner_descriptions |= _describe_properties(definition)
    errors_by_path: dict[str, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False, include_context=False, include_input=False):
        path = _error_path(details, inner_descriptions)
        errors_by_path.setdefault(path, []).append(details)
    deepest_paths = [
        path
        for path in errors_by_path
        if not any(other.startswith(f"{path}.") for other in errors_by_path)
    ]
    lines = []
    for path in deepest_paths:
        known = inner_descriptions if "." in path else descriptions
        lines.append(_format_error(path, errors_by_path[path], known, arguments))
    if len(lines) > _MAX_ERRORS:
        lines[_MAX_ERRORS:] = [f"… and {len(lines) - _MAX_ERRORS} more."]
    required = ", ".join(tool.parameters.get("required", [])) or "none"
    lines.append(f"{tool.name} takes: {', '.join(arguments)}; required: {required}.")
    return "\n".join(lines)


def _error_path(details: ErrorDetails, descriptions: Mapping[str, str]) -> str:
    """Return where an error is: names of fields and numbers of items, joined by dots.

    Pydantic also lists the branches of a union, which mean nothing to the caller.
    """
    location = details["loc"]
    is_unknown = details["type"] == "extra_forbidden"
    parts = [
        part
        for index, part in enumerate(location)
        if isinstance(part, int)
        or part in descriptions
        or (is_unknown and index == len(location) - 1)
    ]
    return ".".join(str(part)[:_MAX_PATH_PART] for part in parts[:_MAX_PATH_PARTS])


def _format_error(
    path: str, errors: list[ErrorDetails], descriptions: Mapping[str, str], arguments: list[str]
) -> str:
    """Return one line on the errors of one field."""
    first = errors[0]
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        similar = difflib.get_close_matches(path, arguments, n=1)
        suggestion = f" Did you mean {similar[0]!r}?" if similar else ""
        return f"There is no argument {path!r}.{suggestion}"
    messages = list(dict.fromkeys(details["msg"][:_MAX_MESSAGE] for details in errors))
    options = [message.removeprefix(_MESSAGE_PREFIX) for message in messages[1:]]
    parts = [part for part in reversed(path.split(".")) if descriptions.get(part)]
    meaning = f" ({descriptions[parts[0]]})" if parts else ""
    return f"{path}: {' / '.join([messages[0], *options])}.{meaning}"


def _describe_properties(schema: Mapping[str, Any]) -> dict[str, str]:
    """Return the description of each property of an object."""
    properties = schema.get("properties", {})
    return {name: _find_description(field_schema) for name, field_schema in properties.items()}


def _find_description(field_schema: Mapping[str, Any]) -> str:
    candidates = [field_schema, *field_schema.get("anyOf", [])]
    descriptions = (str(part["description"]) for part in candidates if part.get("description"))
    return next(descriptions, "")


def _require_bool(value: Any) -> Any:
    """Accept true and false, and no number that stands for them."""
    if not isinstance(value, bool):
        raise PydanticCustomError("bool_type", "Input should be true or false")
    return value


def refuse_bool(value: Any) -> Any:
    """Refuse true and false, which would otherwise count as 1 and 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("not_bool", "Input should not be true or false")
    return value


def _strip_schema(schema: Any) -> Any:
    """Return a schema without generated titles, and without defaults of null.

    What is left out of a call is null anyway. A property that is called title stays.
    """
    if isinstance(schema, list):
        return [_strip_schema(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    stripped = {}
    for key, value in schema.items():
        is_title = key == "title" and isinstance(value, str)
        is_null_default = key == "default" and value is None
        if is_title or is_null_default:
            continue
        if key in ("properties", "$defs"):  # the keys inside are names, not keywords
            stripped[key] = {name: _strip_schema(inner) for name, inner in value.items()}
        else:
            stripped[key] = _strip_schema(value)
    return stripped
