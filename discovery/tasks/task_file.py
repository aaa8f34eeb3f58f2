"""Reading a task file: JSON Lines with one prompt pair, or one reference prompt, on each line.

Every error names the line and says how to fix it. docs/interfaces.md, "Task file", describes the
fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from discovery.errors import TaskError
from discovery.tasks.pairs import (
    Answer,
    Prompt,
    PromptPair,
    ReferenceLine,
    TaskLine,
    shorten_repr,
)

REQUIRED_FIELDS = ("clean", "corrupted", "answer", "wrong")
REFERENCE_USE = "reference"
"""The value of the field `use` for a line that only serves the means of mean ablation."""

FIELDS = (*REQUIRED_FIELDS, "template", "labels", "use")
MAX_FILE_BYTES = 64 * 2**20


def read_task_file(path: Path) -> dict[str, TaskLine]:
    """Read a task file and return what its lines hold, by location: "line 1", "line 2", …

    Raises:
        TaskError: if the file cannot be read, or if a line is not a pair. The message names the
            line.
    """
    lines = enumerate(_read_lines(path), start=1)
    filled = [(number, line) for number, line in lines if line.strip()]
    if not filled:
        raise TaskError(
            f"The task file {path.name!r} has no pairs.",
            "Write one JSON object a line: clean, corrupted, answer, wrong.",
        )
    return {f"line {number}": _pair_from_line(line, f"line {number}") for number, line in filled}


def _read_lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TaskError(
                f"{path.name} is larger than 64 MiB.",
                "A few thousand pairs are enough: use --pairs or a smaller file.",
            )
        # str.splitlines would also split at U+2028 and others, which JSON strings may contain.
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise TaskError(
            f"The task file {str(path)!r} is not UTF-8 text.", "Save it as UTF-8."
        ) from None
    except OSError as fault:
        raise TaskError(
            f"The task file {str(path)!r} cannot be read ({fault.strerror}).",
            "Check its path and permissions.",
        ) from None


def _pair_from_line(line: str, location: str) -> TaskLine:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as fault:
        raise _not_json(location, f"{fault.msg}, column {fault.colno}") from None
    except (ValueError, RecursionError):
        raise _not_json(location, "a number is too long, or the nesting is too deep") from None
    if not isinstance(fields, dict):
        raise TaskError(
            f"{location}: a {type(fields).__name__}, not an object.",
            'Write {"clean": …, "corrupted": …, "answer": …, "wrong": …}.',
        )
    return line_from_fields(fields, location)


def _not_json(location: str, reason: str) -> TaskError:
    return TaskError(f"{location}: not JSON ({reason}).", "Write one JSON object on each line.")


def line_from_fields(fields: Mapping[str, Any], location: str) -> TaskLine:
    """Make a pair or a reference prompt from the fields of one line of a task file.

    A reference line needs `corrupted` alone. If it has `clean`, `answer` and `wrong` too, so that a
    pair can be turned into a reference prompt by adding `use`, these must be well-formed, and they
    are not used.

    Args:
        fields: the fields by name.
        location: how an error names the pair, e.g. "line 3".

    Raises:
        TaskError: if a field is missing, unknown, or has the wrong form.
    """
    is_reference = _parse_use(fields, location)
    _check_field_names(fields, location, is_reference=is_reference)
    template = fields.get("template")
    if template is not None and not _is_text(template):
        raise TaskError(
            f"{location}: template is {shorten_repr(template)}.", "Name the template with a text."
        )
    labels = _parse_labels(fields.get("labels"), location)
    corrupted = _parse_prompt(fields["corrupted"], f"{location}, corrupted")
    if is_reference:
        _check_unused_fields(fields, location)
        return ReferenceLine(corrupted=corrupted, template=template, labels=labels)
    return PromptPair(
        clean=_parse_prompt(fields["clean"], f"{location}, clean"),
        corrupted=corrupted,
        answer=_parse_answer(fields["answer"], f"{location}, answer"),
        wrong=_parse_answer(fields["wrong"], f"{location}, wrong"),
        template=template,
        labels=labels,
    )


def _check_unused_fields(fields: Mapping[str, Any], location: str) -> None:
    """Check the form of what a reference line says beyond its corrupted prompt."""
    if "clean" in fields:
        _parse_prompt(fields["clean"], f"{location}, clean")
    for name in ("answer", "wrong"):
        if name in fields:
            _parse_answer(fields[name], f"{location}, {name}")


def _parse_use(fields: Mapping[str, Any], location: str) -> bool:
    """Return whether a line only serves the means of mean ablation."""
    if "use" not in fields:
        return False
    if fields["use"] != REFERENCE_USE:
        raise TaskError(
            f"{location}: use is {shorten_repr(fields['use'])}.",
            f'Write "use": "{REFERENCE_USE}" for a prompt that only serves mean ablation, '
            "or leave it out.",
        )
    return True


def _check_field_names(fields: Mapping[str, Any], location: str, *, is_reference: bool) -> None:
    for name in fields:
        if name not in FIELDS:
            raise TaskError(
                f"{location}: unknown field {shorten_repr(name)}.",
                f"The fields are {', '.join(FIELDS)}.",
            )
    if is_reference and "corrupted" not in fields:
        raise TaskError(
            f"{location}: the field 'corrupted' is missing.",
            "A reference line needs a corrupted prompt.",
        )
    for name in () if is_reference else REQUIRED_FIELDS:
        if name not in fields:
            raise TaskError(
                f"{location}: the field {name!r} is missing.",
                "Each pair needs clean, corrupted, answer and wrong.",
            )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    """Whether the value is a text that a tokenizer accepts.

    JSON can write half a character, a surrogate escape on its own, which no tokenizer accepts.
    """
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _parse_prompt(value: Any, location: str) -> Prompt:
    if _is_text(value):
        return value  # type: ignore[no-any-return]
    if isinstance(value, list | tuple) and all(_is_int(member) for member in value):
        return tuple(value)
    raise TaskError(
        f"{location}: {shorten_repr(value)} is not a prompt.", "Give a text or a list of token ids."
    )


def _parse_answer(value: Any, location: str) -> Answer:
    if _is_text(value) or _is_int(value):
        return value  # type: ignore[no-any-return]
    if isinstance(value, list | tuple) and all(_is_text(item) or _is_int(item) for item in value):
        return tuple(value)
    raise TaskError(
        f"{location}: {shorten_repr(value)} is not an answer.",
        "Give a text, a token id, or a list of these.",
    )


def _parse_labels(value: Any, location: str) -> dict[str, int]:
    labels = {} if value is None else value
    if isinstance(labels, Mapping) and all(
        _is_text(name) and _is_int(position) for name, position in labels.items()
    ):
        return dict(labels)
    raise TaskError(
        f"{location}: labels is {shorten_repr(labels)}.", 'Write labels as {"S2": 9, "end": -1}.'
    )
